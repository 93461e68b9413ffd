"""window_attn: kernel and gradient against the definition, odd maps, and what is refused."""

import pytest
import torch
from support import DTYPES, assert_as_good_as, random

import nanoemox_kernels as nk
from nanoemox_kernels._tuning import tuned
from nanoemox_kernels.ops.window_attn import reference
from nanoemox_kernels.ops.window_attn.kernel import window_attn_fwd

# n, height, width, heads, head size, window, shift: the model's (one of its heads), padded maps with and
# without a shift, sizes that fill no tile, a window of one, and nothing at all
SHAPES = [
    (1, 14, 14, 2, 32, 7, 3), (2, 7, 7, 2, 32, 7, 0), (1, 9, 15, 1, 24, 7, 3), (2, 5, 6, 3, 5, 4, 0),
    (1, 5, 11, 1, 16, 3, 1), (1, 2, 3, 2, 1, 1, 0), (1, 13, 12, 1, 8, 11, 5), (0, 8, 8, 1, 8, 4, 2),
]  # fmt: skip


def make(shape, dtype, device, scale=1.0):
    n, height, width, heads, D, window, shift = shape
    C = heads * D
    qkv, bias = (
        random((n, height * width, 3 * C), dtype, device, scale),
        random((heads,) + 2 * (window**2,), dtype, device),
    )
    return qkv, bias, random((3 * C,), dtype, device), height, width, window, shift


def wide(args):
    return [t.double() if isinstance(t, torch.Tensor) else t for t in args]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_matches_the_definition(shape, dtype, device):
    args = make(shape, dtype, device)
    low, exact = reference.window_attn(*args), reference.window_attn(*wide(args))
    assert_as_good_as(window_attn_fwd(*args), low, exact)


def test_a_bias_that_fills_its_tile_is_the_same(device):
    qkv, bias, padding, *rest = make((1, 9, 7, 2, 8, 3, 1), torch.float32, device)
    want = window_attn_fwd(qkv, bias, padding, *rest)
    tile = torch.full((2, 16, 16), torch.nan, device=device)
    tile[:, :9, :9] = bias
    for wider in (tile, tile[:, :12, :12]):
        assert torch.equal(window_attn_fwd(qkv, wider, padding, *rest), want)
        torch.testing.assert_close(reference.window_attn(qkv, wider, padding, *rest), want)


@pytest.mark.parametrize("programs", [1, 7, 1 << 20])
def test_windows_that_share_a_program(programs, device, monkeypatch):
    """All windows of a head in one, a last program that is not full, and one to a program."""
    monkeypatch.setitem(tuned("window_attn"), "PROGRAMS", programs)
    args = make((3, 9, 11, 2, 8, 4, 1), torch.float32, device)
    low, exact = reference.window_attn(*args), reference.window_attn(*wide(args))
    assert_as_good_as(window_attn_fwd(*args), low, exact)


def test_strided_inputs_no_padding_row_and_extreme_values(device):
    qkv, bias, _, *rest = make((2, 6, 5, 2, 8, 4, 2), torch.float32, device, 30.0)
    wider = torch.cat([qkv, qkv], 2).repeat_interleave(2, 1)[:, ::2, : qkv.shape[2]]
    assert not wider.is_contiguous()
    exact = reference.window_attn(qkv.double(), bias.double(), None, *rest)
    for view in (wider, qkv.transpose(1, 2).contiguous().transpose(1, 2)):
        got = window_attn_fwd(view, bias.transpose(1, 2).contiguous().transpose(1, 2), None, *rest)
        assert_as_good_as(got, reference.window_attn(qkv, bias, None, *rest), exact)


def test_nan_stays_in_its_window_and_head(device):
    qkv, bias, padding, *rest = make((1, 8, 8, 2, 8, 4, 0), torch.float32, device)
    qkv[0, 0, 16] = torch.nan  # a key of head 0 in the first window
    nan = window_attn_fwd(qkv, bias, padding, *rest).isnan().view(8, 8, 2, 8)
    assert nan[:4, :4, 0].all() and not nan[:, :, 1].any() and not nan[4:].any() and not nan[:, 4:].any()


def test_gradients_opcheck_and_compilation(device):
    qkv, bias, padding, *options = wide(make((1, 3, 4, 2, 2, 2, 1), torch.float64, device))
    inputs = [t.requires_grad_() for t in (qkv, bias, padding)]
    options = dict(zip(("height", "width", "window", "shift"), options, strict=True))
    assert torch.autograd.gradcheck(lambda q, b, p: nk.window_attn(q, b, padding=p, **options), inputs)
    args = [t.detach().float() for t in inputs]
    torch.library.opcheck(torch.ops.nanoemox.window_attn.default, (*args, *options.values()))
    compiled = torch.compile(
        lambda q, b, p: nk.window_attn(q, b, padding=p, **options), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(*args), nk.window_attn(args[0], args[1], padding=args[2], **options))


def test_what_is_refused(device):
    qkv, bias = torch.zeros(2, 12, 24, device=device), torch.zeros(2, 4, 4, device=device)
    for call, match in (
        (lambda: nk.window_attn(qkv, bias, 3, 5, window=2), r"qkv \[n, 15, 3C\]"),
        (lambda: nk.window_attn(qkv, bias, 3, 4, window=3), r"window 3"),
        (lambda: nk.window_attn(qkv, bias, 3, 4, window=2, shift=2), "shift 2"),
        (lambda: nk.window_attn(qkv[..., :20], bias, 3, 4, window=2), "2 heads"),
        (lambda: nk.window_attn(qkv, bias, 3, 4, window=2, padding=qkv[0, 0, :9]), r"padding \[24\]"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
