"""The accelerated encoders as a GPU runs them, on the Triton kernels, against their own form for a CPU."""

import pytest
import torch

import nanoemox
from nanoemox_kernels.ops.time_conv import op as time_conv
from nanoemox_kernels.ops.window_attn import op as window_attn

INPUTS = {"face": lambda: torch.randint(0, 256, (1, 1, 3, 230, 224)), "audio": lambda: 0.1 * torch.randn(1, 1, 8000)}


@torch.inference_mode()
@pytest.mark.skipif(torch.cuda.is_available(), reason="the device check compares whole models on a GPU")
@pytest.mark.parametrize("part", INPUTS)
def test_fused_ops_change_nothing(part, monkeypatch):
    for module in ("linear", "attention"):  # weights in PyTorch's order, as a GPU has them
        monkeypatch.setattr(f"nanoemox.fast.{module}.multiplies_packed", lambda device, dtype: False)
    encoder = getattr(nanoemox.load("demo", fast=True, dtype="float32", device="cpu"), part)
    x, calls = INPUTS[part](), []
    want = encoder(x)
    for module in ("swin", "audio"):
        monkeypatch.setattr(f"nanoemox.fast.{module}.has_fused_ops", lambda x: True)
    for op in (time_conv, window_attn):
        kernel = op._cuda
        monkeypatch.setattr(op, "_op", lambda *args, kernel=kernel: calls.append(args) or kernel(*args))
    for _ in range(2):
        got = encoder(x)
    assert calls
    pairs = [(got, want)] if part == "face" else zip(got, want, strict=True)
    for g, w in pairs:
        assert (g - w).abs().max() <= 2e-5 * w.abs().max()
