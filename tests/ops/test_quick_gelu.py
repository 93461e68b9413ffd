"""quick_gelu_: kernel against the definition, strided inputs, and what is refused."""

import pytest
import torch
from support import DTYPES, assert_as_good_as, random

import nanoemox_kernels as nk
from nanoemox_kernels.ops.quick_gelu import reference
from nanoemox_kernels.ops.quick_gelu.kernel import quick_gelu_inplace


def applied(function, x):
    x = x.clone()
    function(x)
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 512), (7, 33), (1,), (0, 4)], ids=str)
def test_kernel_matches_the_definition(shape, dtype, device):
    x = random(shape, dtype, device, 4.0)
    low, exact = (applied(reference.quick_gelu_, t) for t in (x, x.double()))
    assert_as_good_as(applied(quick_gelu_inplace, x), low, exact)


def test_only_a_view_is_written_and_extremes_stay(device):
    base = random((6, 8), torch.float32, device)
    base[2, 2], base[2, 4], base[4, 0] = torch.nan, 1e30, -1e30
    want, got = base.clone(), base.clone()
    want[::2, ::2] = want[::2, ::2] * torch.sigmoid(1.702 * want[::2, ::2])
    quick_gelu_inplace(got[::2, ::2])
    torch.testing.assert_close(got, want, equal_nan=True)
    assert got[2, 4] == 1e30 and got[4, 0] == 0


def test_opcheck_compilation_and_gradients_that_are_refused(device):
    x = random((3, 4), torch.float32, device)
    torch.library.opcheck(torch.ops.nanoemox.quick_gelu_.default, (x.clone(),))
    compiled = torch.compile(nk.quick_gelu_, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x.clone()), nk.quick_gelu_(x.clone()))
    with pytest.raises(RuntimeError, match="inference only"):
        nk.quick_gelu_(x.requires_grad_())
