"""feature_taps_ and tap_pool_: kernels against the definition, odd inputs, and what is refused."""

import pytest
import torch
from support import DTYPES, assert_as_good_as, random

import nanoemox_kernels as nk
from nanoemox_kernels import Tap
from nanoemox_kernels.ops.feature_taps import op, reference
from nanoemox_kernels.ops.feature_taps.kernel import residual_norm_fwd, tap_pool_fwd

# the model's widths, odd, smallest, empty
SHAPES = [(2, 9, 1024), (3, 7, 128), (3, 5, 33), (1, 1, 1), (0, 4, 16)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("update", "norm", "bias"), [(1, 1, 1), (1, 1, 0), (0, 1, 1), (1, 0, 0)])
def test_norm_kernel_matches_the_definition(shape, dtype, update, norm, bias, device):
    R, N, D = shape
    hidden, change = random(shape, dtype, device), random(shape, dtype, device) if update else None
    weight = 1 + random((D,), dtype, device, 0.1) if norm else None
    shift = random((D,), dtype, device, 0.1) if bias else None

    def define(cast):
        h = cast(hidden).clone()
        args = [None if t is None else cast(t) for t in (change, weight, shift)]
        return reference.feature_taps_(h, *args, 1e-5, [], [], [], []), h

    (low, low_h), (exact, exact_h) = define(lambda t: t), define(lambda t: t.double())
    work = hidden.clone()
    got = residual_norm_fwd(work, change, weight, shift, 1e-5)
    assert_as_good_as(got, low, exact)
    assert_as_good_as(work, low_h, exact_h)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mean", [False, True])
def test_pool_kernel_matches_the_definition(shape, dtype, mean, device):
    R, N, D = shape
    hidden = random(shape, dtype, device)
    buffer = random((R, 3 * D), torch.float32, device)
    got, low = buffer.clone(), buffer.clone()
    exact = buffer.double()
    tap_pool_fwd(got[:, D : 2 * D], hidden, 0.25, mean)  # a slice of a wider buffer
    reference.tap_pool_(low[:, D : 2 * D], hidden, 0.25, mean)
    reference.tap_pool_(exact[:, D : 2 * D], hidden.double(), 0.25, mean)
    assert_as_good_as(got, low, exact)
    assert torch.equal(got[:, :D], buffer[:, :D]) and torch.equal(got[:, 2 * D :], buffer[:, 2 * D :])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("N", [513, 700, 768])
def test_a_long_mean_in_parts(N, dtype, device):
    """More rows than one program sums, the last part full or of one row; strided."""
    hidden, buffer = random((2, 40, N), dtype, device).transpose(1, 2), random((2, 40), torch.float32, device)
    low, exact, got = buffer.clone(), buffer.double(), buffer.clone()
    reference.tap_pool_(low, hidden, 0.25, True)
    reference.tap_pool_(exact, hidden.double(), 0.25, True)
    tap_pool_fwd(got, hidden, 0.25, True)
    assert_as_good_as(got, low, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("of_norm", [False, True])
def test_a_row_is_tapped_on_the_way(dtype, of_norm, device):
    """The first row tap of a layer is written by the norm's kernel, in any place of the list; rows share
    programs.
    """
    hidden, update = (random((5, 3, 128), dtype, device) for _ in range(2))
    weight, bias = 1 + random((128,), dtype, device, 0.1), random((128,), dtype, device)
    buffers = random((5, 2 * 128), torch.float32, device), random((128, 5), torch.float32, device).t()

    def tapped(function, cast):
        mean, row = (cast(b).clone() for b in buffers)
        row = row.t().contiguous().t()
        args = (
            [mean[:, 128:], row, row],
            [0.5, 0.25, 2.0],
            [False, of_norm, not of_norm],
            [True, False, False],
        )
        y = function(cast(hidden).clone(), cast(update), cast(weight), cast(bias), 1e-5, *args)
        return y, mean, row

    low, exact = (tapped(reference.feature_taps_, cast) for cast in (lambda t: t, lambda t: t.double()))
    for values in zip(tapped(op._feature_taps_cuda, lambda t: t), low, exact, strict=True):
        assert_as_good_as(*values)


def test_strided_streams_are_written_in_place(device):
    base = random((4, 12, 40), torch.float32, device)
    weight = torch.ones(40, device=device)
    for view in (base[::2, 1::2], base.transpose(0, 1), base.transpose(1, 2)[:, :, :7]):
        work = base.clone()
        got_view = work.as_strided(view.shape, view.stride(), view.storage_offset())
        D = view.shape[2]
        change = random(tuple(view.shape), torch.float32, device)
        want = view.clone()
        want_y = reference.feature_taps_(want, change, weight[:D], None, 1e-5, [], [], [], [])
        y = residual_norm_fwd(got_view, change, weight[:D], None, 1e-5)
        torch.testing.assert_close(y, want_y)
        torch.testing.assert_close(got_view, want)


def test_taps_replace_a_list_of_hidden_states(device):
    """A small tower's taps equal those of its kept states, as vision (CLS) and audio (means) take them."""
    hidden = random((6, 5, 32), torch.float32, device)
    updates = [random((6, 5, 32), torch.float32, device) for _ in range(4)]
    weight, bias = torch.rand(32, device=device), torch.rand(32, device=device)
    stream, states = hidden.clone(), []
    cls, means = torch.zeros(6, 64, device=device), torch.zeros(6, 32, device=device)
    for layer, update in enumerate(updates):
        taps = [Tap(cls[:, 32 * (layer // 2) :][:, :32])] if layer in (1, 3) else []
        last = layer == 3
        if layer >= 2:
            taps.append(Tap(means, 0.5, "norm" if last else "residual", "mean"))
        y = nk.feature_taps_(stream, update, weight, bias, taps=taps)
        states.append(stream.clone())
    torch.testing.assert_close(cls, torch.cat([states[1][:, 0], states[3][:, 0]], dim=-1))
    torch.testing.assert_close(means, 0.5 * (states[2].mean(1) + y.mean(1)))
    torch.testing.assert_close(stream, hidden + sum(updates))


def test_opcheck_and_compilation(device):
    hidden, update = random((2, 3, 8), torch.float32, device), random((2, 3, 8), torch.float32, device)
    weight, out = torch.ones(8, device=device), torch.zeros(2, 8, device=device)
    args = (hidden, update, weight, None, 1e-5, [out], [1.0], [False], [True])
    torch.library.opcheck(torch.ops.nanoemox.feature_taps_.default, args)
    torch.library.opcheck(torch.ops.nanoemox.tap_pool_.default, (out, hidden, 0.5, False))
    a, b = hidden.clone(), hidden.clone()
    compiled = torch.compile(
        lambda h: nk.feature_taps_(h, update, weight), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(a), nk.feature_taps_(b, update, weight))
    torch.testing.assert_close(a, b)


def test_nan_stays_nan(device):
    hidden = torch.zeros(1, 2, 8, device=device)
    hidden[0, 1, 3] = float("nan")
    y = nk.feature_taps_(hidden, None, torch.ones(8, device=device))
    assert y[0, 1].isnan().all() and not y[0, 0].isnan().any()


def test_what_is_refused(device):
    hidden, out = torch.zeros(2, 3, 8, device=device), torch.zeros(2, 8, device=device)
    for call, match in (
        (lambda: nk.feature_taps_(hidden[0]), r"hidden \[R, N, D\]"),
        (lambda: nk.feature_taps_(hidden, hidden[:, :2]), "update"),
        (lambda: nk.feature_taps_(hidden, None, out[0, :3]), "norm_weight"),
        (lambda: nk.feature_taps_(hidden, taps=[Tap(out, source="norm")]), "needs norm_weight"),
        (lambda: nk.feature_taps_(hidden, taps=[Tap(out[:1])]), "tap out"),
        (lambda: nk.tap_pool_(out.half(), hidden), "float32"),
        (lambda: nk.tap_pool_(out, hidden, select="max"), "'max'"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(RuntimeError, match="inference only"):
        nk.feature_taps_(hidden.clone().requires_grad_())
