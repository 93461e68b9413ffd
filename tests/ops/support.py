"""The error rule: a kernel may err twice as much as PyTorch in the same dtype, plus one ulp of the peak."""

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = [torch.float32, torch.float16] + (
    [] if INTERPRETED else [torch.bfloat16]
)  # the interpreter truncates bf16


def assert_as_good_as(got, low, exact, factor=2.0):
    """`got` against `exact` (fp64), judged by the error of `low`, PyTorch's own in the dtype of `got`."""
    assert got.dtype == low.dtype and got.shape == low.shape
    if not got.numel():
        return
    assert torch.isfinite(got).all()
    ulp = torch.finfo(got.dtype).eps * exact.abs().max().item()
    err, ref_err = ((x.double() - exact).abs().max().item() for x in (got, low))
    assert err <= factor * ref_err + ulp, f"max error {err:.3e}; PyTorch's own {ref_err:.3e}; ulp {ulp:.3e}"


def random(shape, dtype, device, scale=1.0):
    return (scale * torch.randn(shape, dtype=torch.float64)).to(dtype).to(device)


def double(tensors):
    return [t.double() for t in tensors]
