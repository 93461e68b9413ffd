"""time_conv: kernel and gradient against the definition, odd sizes, and what is refused."""

import pytest
import torch
from support import DTYPES, assert_as_good_as, random

import nanoemox_kernels as nk
from nanoemox_kernels.ops.time_conv import reference
from nanoemox_kernels.ops.time_conv.kernel import time_conv_fwd

# n, T, channels and outputs a group, groups, kernel, stride, padding, trim: a first layer, an inner one,
# positions, one tap, odd
SHAPES = [
    (2, 83, 1, 32, 1, 10, 5, 0, 0), (2, 21, 64, 96, 1, 3, 2, 0, 0), (2, 9, 16, 16, 4, 8, 1, 4, 1),
    (2, 70, 24, 80, 1, 1, 1, 0, 0), (1, 7, 5, 3, 3, 7, 1, 3, 0), (1, 1, 1, 1, 1, 1, 1, 0, 0),
    (0, 5, 4, 4, 1, 2, 2, 0, 0),
]  # fmt: skip


def make(shape, dtype, device, gelu=True):
    n, T, C, N, groups, kernel, *rest = shape
    weight = random((N * groups, kernel * C), dtype, device, (kernel * C) ** -0.5)
    bias = random((N * groups,), dtype, device)
    return random((n, T, C * groups), dtype, device), weight, bias, kernel, *rest, gelu


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gelu", [True, False])
def test_kernel_matches_the_definition(shape, dtype, gelu, device):
    args = make(shape, dtype, device, gelu)
    low, exact = reference.time_conv(*args), reference.time_conv(*(t.double() for t in args[:3]), *args[3:])
    assert_as_good_as(time_conv_fwd(*args), low, exact)


def test_strided_inputs_no_bias_and_nan(device):
    x, weight, _, *rest = make((2, 12, 6, 5, 2, 3, 2, 1, 0), torch.float32, device)
    want = reference.time_conv(x, weight, None, *rest)
    for view in (
        x.transpose(1, 2).contiguous().transpose(1, 2),
        x.transpose(0, 1).contiguous().transpose(0, 1),
    ):
        torch.testing.assert_close(time_conv_fwd(view, weight, None, *rest), want)
    x[0, 4, 0] = torch.nan  # of the first group, seen by the steps whose windows hold it
    got = time_conv_fwd(x, weight, None, *rest)
    assert torch.equal(got.isnan(), reference.time_conv(x, weight, None, *rest).isnan()) and got.isnan().any()


def test_gradients_opcheck_and_compilation(device):
    args = make((1, 6, 2, 3, 2, 3, 1, 1, 1), torch.float64, device)
    names = dict(zip(("kernel", "stride", "padding", "trim", "gelu"), args[3:], strict=True))
    inputs = [t.requires_grad_() for t in args[:3]]
    assert torch.autograd.gradcheck(lambda x, w, b: nk.time_conv(x, w, b, **names), inputs)
    low = [t.detach().float() for t in inputs]
    torch.library.opcheck(torch.ops.nanoemox.time_conv.default, (*low, *args[3:]))
    compiled = torch.compile(
        lambda x, w, b: nk.time_conv(x, w, b, **names), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(*low), nk.time_conv(*low, **names))


def test_what_is_refused(device):
    x, weight = torch.zeros(1, 5, 8, device=device), torch.zeros(6, 12, device=device)
    for call, match in (
        (lambda: nk.time_conv(x[0], weight, kernel=3), r"x \[n, T, C\*groups\]"),
        (lambda: nk.time_conv(x, weight, kernel=5), "no groups"),
        (lambda: nk.time_conv(x, weight, x[0, 0], kernel=3), r"bias \[6\]"),
        (lambda: nk.time_conv(x[:, :2], weight, kernel=3), "too few"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
