"""gelu_ and quick_gelu_: kernel against the definition, strided inputs, and what is refused."""

import pytest
import torch
from support import DTYPES, assert_as_good_as, random

import nanoemox_kernels as nk
from nanoemox_kernels.ops.activation import reference
from nanoemox_kernels.ops.activation.kernel import activation_inplace

BOTH = pytest.mark.parametrize(("op", "definition", "quick"), [
    (nk.gelu_, reference.gelu_, False), (nk.quick_gelu_, reference.quick_gelu_, True),
], ids=["gelu_", "quick_gelu_"])  # fmt: skip


def applied(function, x, *more):
    x = x.clone()
    function(x, *more)
    return x


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 512), (7, 33), (1,), (0, 4)], ids=str)
def test_kernel_matches_the_definition(op, definition, quick, shape, dtype, device):
    x = random(shape, dtype, device, 4.0)
    low, exact = (applied(definition, t) for t in (x, x.double()))
    assert_as_good_as(applied(activation_inplace, x, quick), low, exact)


def test_short_gelu_is_exact_to_the_last_digit(device):
    x = torch.linspace(-8, 8, 100001, device=device).half()
    exact = 0.5 * x.double() * torch.special.erfc(-x.double() / 2**0.5)  # 1 + erf would lose the small ones
    error = (applied(activation_inplace, x, False).double() - exact).abs()
    assert (error <= 0.501 * 2.0**-10 * exact.abs() + 2e-7).all()


@BOTH
def test_only_a_view_is_written_and_extremes_stay(op, definition, quick, device):
    base = random((6, 8), torch.float32, device)
    base[2, 2], base[2, 4], base[4, 0] = torch.nan, 1e30, -1e30
    want, got = base.clone(), base.clone()
    want[::2, ::2] = applied(definition, want[::2, ::2])
    activation_inplace(got[::2, ::2], quick)
    torch.testing.assert_close(got, want, equal_nan=True)
    assert got[2, 4] == 1e30 and got[4, 0] == 0
    infinite = torch.tensor([torch.inf], device=device)
    assert applied(activation_inplace, infinite, quick) == torch.inf


@BOTH
def test_opcheck_compilation_and_gradients_that_are_refused(op, definition, quick, device):
    x = random((3, 4), torch.float32, device)
    torch.library.opcheck(getattr(torch.ops.nanoemox, op.__name__).default, (x.clone(),))
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x.clone()), op(x.clone()))
    with pytest.raises(RuntimeError, match=f"{op.__name__} .*inference only"):
        op(x.requires_grad_())
