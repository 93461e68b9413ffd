"""The encoders at true size: the accelerated form against the reference, one clip and a batch of eight."""

import pytest
import torch
from common import roofline
from common.bundles import encoder_bundle

import nanoemox

WORK = {"vision": roofline.clip, "audio": roofline.hubert, "face": roofline.swin}


@pytest.fixture(scope="module")
def pair(tmp_path_factory, device):
    folder = encoder_bundle(tmp_path_factory.mktemp("bundle"))
    return {fast: nanoemox.load(folder, fast=fast, device=device, dtype="bfloat16") for fast in (True, False)}


@pytest.mark.parametrize("B", [1, 8])
@pytest.mark.parametrize("encoder", WORK)
def test_encoder(measure, request, pair, device, encoder, B):
    torch.manual_seed(0)
    given = (
        torch.randint(0, 256, (B, 8, 3, 224, 224)).float()
        if encoder != "audio"
        else torch.randn(B, 8, 32000) / 10
    )
    given = given.to(device)
    calls = {
        "fast": lambda: getattr(pair[True], encoder)(given),
        "reference": lambda: getattr(pair[False], encoder)(given),
    }
    with torch.inference_mode():
        for got, want in zip(
            *(call() if encoder != "face" else (call(),) for call in calls.values()), strict=True
        ):
            assert (got - want).float().abs().max() < 0.1 * want.float().abs().max()
    weights = sum(t.nbytes for t in getattr(pair[False], encoder).parameters())
    rounds = max(5, request.config.getoption("--rounds") // (3 if B == 1 else 6))
    measure(f"{encoder} bfloat16 B={B}", calls, weights, WORK[encoder](B), rounds=rounds, warm=1)
