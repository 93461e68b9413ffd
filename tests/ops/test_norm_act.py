"""norm_act and conv_norm_act: kernels and gradients against the definitions, odd sizes, refusals."""

import pytest
import torch
from support import DTYPES, assert_as_good_as, double, random

import nanoemox_kernels as nk
from nanoemox_kernels.ops.norm_act import op, reference
from nanoemox_kernels.ops.norm_act.kernel import conv_norm_act_fwd, norm_act_fwd

# the front end's width, rows that share a program and end within one, odd, one to a program, smallest, empty
SHAPES = [(2, 9, 512), (3, 7, 128), (5, 33), (2, 3, 2500), (1, 1), (0, 4, 16)]
# n, samples, outputs, kernel, stride: the model's first layer (outputs of a multiple), odd ones, smallest,
# empty
SIGNALS = [(2, 183, 64, 10, 5), (1, 40, 33, 17, 3), (3, 7, 5, 1, 1), (1, 1, 1, 1, 1), (0, 9, 16, 4, 2)]


def make(shape, dtype, device):
    D = shape[-1]
    return [
        3 + random(shape, dtype, device),
        1 + random((D,), dtype, device, 0.1),
        random((D,), dtype, device),
    ]


def signal(shape, dtype, device):
    n, samples, D, kernel, stride = shape
    _, scale, shift = make((D,), dtype, device)
    weight = random((D, kernel), dtype, device, kernel**-0.5)
    return [random((n, samples), dtype, device), weight, random((D,), dtype, device), scale, shift], stride


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gelu", [True, False])
def test_norm_kernel_matches_the_definition(shape, dtype, gelu, device):
    args = make(shape, dtype, device)
    low, exact = (reference.norm_act(*t, 1e-5, gelu) for t in (args, double(args)))
    assert_as_good_as(norm_act_fwd(*args, 1e-5, gelu), low, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SIGNALS, ids=str)
@pytest.mark.parametrize("gelu", [True, False])
def test_convolution_matches_the_definition(shape, dtype, gelu, device):
    args, stride = signal(shape, dtype, device)
    low, exact = (reference.conv_norm_act(*t, stride, 1e-5, gelu) for t in (args, double(args)))
    assert_as_good_as(conv_norm_act_fwd(*args, stride, 1e-5, gelu), low, exact)


def test_strided_inputs_no_bias_and_nan(device):
    x, scale, shift = make((4, 6, 40), torch.float32, device)
    for view in (x[::2, 1::2], x.transpose(0, 1), x.transpose(1, 2).contiguous().transpose(1, 2)):
        want = reference.norm_act(view, scale, shift, 1e-5, True)
        torch.testing.assert_close(norm_act_fwd(view, scale, shift, 1e-5, True), want)
    x[1, 2, 3] = torch.nan
    nan = norm_act_fwd(x, scale, shift, 1e-5, True).isnan()
    assert nan[1, 2].all() and nan.sum() == 40
    (waves, weight, _, *norm), stride = signal((2, 31, 20, 4, 3), torch.float32, device)
    waves[1, 9] = torch.nan  # seen by the steps whose windows hold it
    for view in (waves, waves.T.contiguous().T):
        want = reference.conv_norm_act(waves, weight, None, *norm, stride, 1e-5, True)
        got = conv_norm_act_fwd(view, weight, None, *norm, stride, 1e-5, True)
        torch.testing.assert_close(got, want, equal_nan=True)


def test_what_a_program_cannot_hold_goes_to_the_definition(device):
    args = make((2, 5000), torch.float32, device)
    assert torch.equal(op._norm_cuda(*args, 1e-5, True), reference.norm_act(*args, 1e-5, True))
    args, stride = signal((1, 90, 8, 80, 2), torch.float32, device)
    assert torch.equal(
        op._conv_cuda(*args, stride, 1e-5, True), reference.conv_norm_act(*args, stride, 1e-5, True)
    )


def test_gradients_opcheck_and_compilation(device):
    norm = make((2, 5), torch.float64, device)
    conv, stride = signal((2, 11, 5, 3, 2), torch.float64, device)
    for function, name, args, rest in (
        (lambda *t: nk.norm_act(*t, gelu=True), "norm_act", norm, (1e-5, True)),
        (lambda *t: nk.conv_norm_act(*t, stride=2, gelu=True), "conv_norm_act", conv, (stride, 1e-5, True)),
    ):
        assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in args])
        low = [t.detach().float() for t in args]
        torch.library.opcheck(getattr(torch.ops.nanoemox, name).default, (*low, *rest))
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*low), function(*low))


def test_what_is_refused(device):
    x, weight, row = (
        torch.zeros(2, 8, device=device),
        torch.zeros(6, 3, device=device),
        torch.zeros(6, device=device),
    )
    for call, match in (
        (lambda: nk.norm_act(x, row, row), r"x \[..., D\]"),
        (lambda: nk.conv_norm_act(x[0], weight, row, row, row), r"x \[n, S\]"),
        (lambda: nk.conv_norm_act(x[:, :2], weight, row, row, row), "kernel of at most S"),
        (lambda: nk.conv_norm_act(x, weight, row[:5], row, row), r"bias \[6\]"),
        (lambda: nk.conv_norm_act(x, weight, None, row, row[:5]), r"norm_bias \[6\]"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
