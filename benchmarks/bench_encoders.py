"""The encoders at published size, accelerated form beside reference, for one clip and a batch of eight."""

from collections.abc import Callable

import pytest
import torch
from common import roofline
from common.bundles import encoder_bundle

import nanoemox

WORK: dict[str, Callable[[int], int]] = {
    "vision": roofline.clip,
    "audio": roofline.hubert,
    "face": roofline.swin,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory, device):
    folder = encoder_bundle(tmp_path_factory.mktemp("bundle"))
    options = {"device": device, "dtype": "bfloat16"}
    return {
        "fast": nanoemox.load(folder, fast=True, **options),
        "reference": nanoemox.load(folder, fast=False, **options),
    }


def random_input(encoder, B):
    if encoder == "audio":
        return torch.randn(B, 8, 32000) / 10
    return torch.randint(0, 256, (B, 8, 3, 224, 224)).float()


@pytest.mark.parametrize("B", [1, 8])
@pytest.mark.parametrize("encoder", WORK)
def test_encoder(measure, request, models, device, encoder, B):
    torch.manual_seed(0)
    x = random_input(encoder, B).to(device)
    parts = {form: getattr(model, encoder) for form, model in models.items()}
    calls = {form: lambda part=part: part(x) for form, part in parts.items()}
    with torch.inference_mode():
        outputs = [call() if encoder != "face" else (call(),) for call in calls.values()]
        for got, want in zip(*outputs, strict=True):
            assert (got - want).float().abs().max() < 0.1 * want.float().abs().max()
    weights = sum(t.nbytes for t in parts["reference"].parameters())
    rounds = max(5, request.config.getoption("--rounds") // (3 if B == 1 else 6))
    measure(f"{encoder} bfloat16 B={B}", calls, weights, WORK[encoder](B), rounds=rounds, warm=1)
