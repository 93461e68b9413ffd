"""attn: kernel, C++ form and gradient against the definition, odd sizes and strides, errors."""

import pytest
import torch
from support import DTYPES, assert_as_good_as, double, random

import nanoemox_kernels as nk
from nanoemox_kernels._tuning import tuned
from nanoemox_kernels.ops.attn import reference
from nanoemox_kernels.ops.attn.kernel import attn_fwd

# n, H, M, T, d: a few of the model's heads, a first row's query alone, sizes that fill no tile, one of each,
# and none
SHAPES = [
    (1, 2, 99, 99, 64), (2, 1, 65, 33, 32), (2, 2, 1, 40, 64), (1, 1, 17, 64, 80), (1, 2, 5, 7, 96),
    (1, 1, 20, 35, 128), (3, 2, 1, 1, 1), (0, 2, 4, 4, 8), (2, 2, 0, 3, 8),
]  # fmt: skip


def low_precision_attention(q, k, v):
    """PyTorch's attention in the dtype of q, as [n,M,H*d]."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def make(shape, dtype, device, scale=1.0):
    n, H, M, T, d = shape
    return [random((n, H, rows, d), dtype, device, scale) for rows in (M, T, T)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_matches_the_definition(shape, dtype, device):
    qkv = make(shape, dtype, device)
    assert_as_good_as(attn_fwd(*qkv), reference.attn(*qkv), reference.attn(*double(qkv)))


@pytest.mark.parametrize(
    ("block_m", "block_n", "T"), [(16, 16, 50), (16, 64, 50), (128, 32, 33), (32, 16, 48)]
)
def test_tiles_of_every_size(block_m, block_n, T, device, monkeypatch):
    monkeypatch.setitem(tuned("attn"), "BLOCK_M", block_m)
    monkeypatch.setitem(tuned("attn"), "BLOCK_N", block_n)
    qkv = make((3, 2, 37, T, 16), torch.float32, device)
    assert_as_good_as(attn_fwd(*qkv), reference.attn(*qkv), reference.attn(*double(qkv)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_op_on_a_cpu_matches_the_definition(shape, dtype):
    """The C++ attention for fp32 and bf16, the definition for fp16 and without the library."""
    qkv = make(shape, dtype, "cpu")
    out = nk.attn(*qkv)
    assert out.is_contiguous()
    assert_as_good_as(out, low_precision_attention(*qkv), reference.attn(*double(qkv)))


def test_attention_is_reachable_from_the_op():
    from nanoemox_kernels.ops.attn import attention, attn, native, serves

    assert attn is nk.attn and attention is native.attention and serves is native.serves


def test_rows_of_one_matrix_any_strides_and_extreme_values(device):
    rows = random((2, 21, 3 * 3 * 8), torch.float32, device, 30.0)
    joint = rows.unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)  # as the encoders have them
    columns = joint.transpose(-1, -2).contiguous().transpose(-1, -2)
    shared = rows[:, :, None, :8].transpose(1, 2).expand(-1, 3, -1, -1)  # one head's keys for all
    for q, k, v in (joint, columns, (joint[0][:, :, ::2], shared, joint[2])):
        exact = reference.attn(*double((q, k, v)))
        assert_as_good_as(attn_fwd(q, k, v), reference.attn(q, k, v), exact)


def test_nan_stays_in_its_item_and_head(device):
    q, k, v = make((2, 2, 20, 40, 8), torch.float32, device)
    k[0, 1, 39, 3] = torch.nan
    nan = attn_fwd(q, k, v).isnan().view(2, 20, 2, 8)
    assert nan[0, :, 1].all() and nan.sum() == 20 * 8


def test_gradients_opcheck_and_compilation(device):
    inputs = [t.requires_grad_() for t in make((1, 2, 3, 4, 2), torch.float64, device)]
    assert torch.autograd.gradcheck(nk.attn, inputs)
    args = [t.detach().float() for t in inputs]
    torch.library.opcheck(torch.ops.nanoemox.attn.default, args)
    compiled = torch.compile(nk.attn, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), nk.attn(*args))


def test_what_is_refused(device):
    q, k = torch.zeros(2, 3, 4, 8, device=device), torch.zeros(2, 3, 5, 8, device=device)
    for args, match in (
        ((q[0], k, k), r"q \[n, H, M, d\]"), ((q, k, k[:, :, :4]), r"\[2, 3, 4, 8\]"),
        ((q, k[:, :2], k[:, :2]), "want q"), ((q[..., :4], k, k), "want q"),
        ((q, k[:, :, :0], k[:, :, :0]), "at least one key"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            nk.attn(*args)
