"""The accelerated encoders as a GPU runs them, on the Triton kernels, against their own form for a CPU."""

import pytest
import torch

import nanoemox
from nanoemox_kernels.ops.activation import op as activation
from nanoemox_kernels.ops.norm_act import op as norm_act
from nanoemox_kernels.ops.time_conv import op as time_conv
from nanoemox_kernels.ops.window_attn import op as window_attn

INPUTS = {
    "vision": lambda: torch.randint(0, 256, (1, 1, 3, 224, 224)),
    "face": lambda: torch.randint(0, 256, (1, 1, 3, 230, 224)),
    "audio": lambda: 0.1 * torch.randn(1, 1, 8000),
}

NORM = (norm_act, "_norm", "_norm_cuda")
OPS = {
    "vision": [(activation, "_quick", "_cuda")],
    "face": [(window_attn, "_op", "_cuda"), (time_conv, "_op", "_cuda"), NORM],
    "audio": [
        (activation, "_gelu", "_cuda"),
        (time_conv, "_op", "_cuda"),
        (norm_act, "_conv", "_conv_cuda"),
        NORM,
    ],
}
MORE = {"_gelu": (False,), "_quick": (True,)}  # what registering binds


@torch.inference_mode()
@pytest.mark.skipif(torch.cuda.is_available(), reason="the device check compares whole models on a GPU")
@pytest.mark.parametrize("part", INPUTS)
def test_fused_ops_change_nothing(part, monkeypatch):
    # weights in PyTorch's order, as a GPU has them
    monkeypatch.setattr("nanoemox.fast.layers.linear.multiplies_packed", lambda device, dtype: False)
    x, calls = INPUTS[part](), []
    expected = getattr(nanoemox.load("demo", fast=True, dtype="float32", device="cpu"), part)(x)
    for module in ("layers.linear", "layers.swin", "layers.attention", "audio", "vision"):
        monkeypatch.setattr(f"nanoemox.fast.{module}.has_fused_ops", lambda x: True)
    if part == "audio":  # the small model's products are narrow: as if they were not
        monkeypatch.setattr("nanoemox.fast.layers.linear.settings", lambda name, device: {"inputs": 0})
    encoder = getattr(nanoemox.load("demo", fast=True, dtype="float32", device="cpu"), part)
    for op, name, kernel in OPS[part]:
        kernel = getattr(op, kernel)

        def call(*args, op=(op, name), kernel=kernel):
            calls.append(op)
            return kernel(*args, *MORE.get(op[1], ()))

        monkeypatch.setattr(op, name, call)
    for _ in range(2):
        got = encoder(x)
    assert set(calls) == {entry[:2] for entry in OPS[part]}
    pairs = [(got, expected)] if part == "face" else zip(got, expected, strict=True)
    for g, w in pairs:
        assert (g - w).abs().max() <= 2e-5 * w.abs().max()
