"""cuBLASLt's products: against PyTorch's on a GPU, in graphs, on a share of it; a clear word where there is
none.
"""

import pytest
import torch
from support import assert_as_good_as, random

from nanoemox_kernels.linear import cublas_lt

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DTYPES = [torch.float16, torch.bfloat16]


def make(M, N, K, dtype=torch.bfloat16, device="cuda"):
    return random((M, K), dtype, device), random((N, K), dtype, device, K**-0.5), random((N,), dtype, device)


def product(x, weight, bias):
    return torch.nn.functional.linear(x, weight, bias)


@pytest.mark.skipif(torch.version.cuda is not None, reason="PyTorch has CUDA here")
def test_without_the_library_there_is_a_reason():
    tensors = make(8, 8, 8, device="cpu")
    assert cublas_lt.why_not == "PyTorch was built without CUDA" and not cublas_lt.serves(*tensors)
    with pytest.raises(RuntimeError, match="no cuBLASLt: PyTorch was built without CUDA"):
        cublas_lt.linear(*tensors)


def test_a_share_holds_within_its_block_and_thread():
    with cublas_lt.multiprocessors(72):
        with cublas_lt.multiprocessors(0):
            assert cublas_lt.share() == 0
        assert cublas_lt.share() == 72
    assert cublas_lt.share() == 0


@GPU
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 8, 8), (99, 1024, 4096), (257, 3072, 1024), (3136, 384, 128)], ids=str)
def test_as_good_as_pytorch(shape, dtype):
    x, weight, bias = make(*shape, dtype)
    for b in (bias, None):
        exact = product(x.double(), weight.double(), None if b is None else b.double())
        for sms in (0, 60):
            with cublas_lt.multiprocessors(sms):
                got = cublas_lt.linear(x[None], weight, b)[0]
            assert_as_good_as(got, product(x, weight, b), exact)


@GPU
def test_addresses_on_smaller_boundaries():
    x, weight, bias = make(33, 64, 128)
    moved = torch.empty(x.numel() + 8, dtype=x.dtype, device="cuda")[8:].view_as(x).copy_(x)
    exact = product(x.double(), weight.double(), bias.double())
    assert moved.data_ptr() % 256 and cublas_lt.serves(moved, weight, bias)
    assert_as_good_as(cublas_lt.linear(moved, weight, bias), product(x, weight, bias), exact)


@GPU
def test_other_biases_and_inputs_in_a_graph():
    x, weight, bias = make(64, 256, 512)
    others = random((256,), torch.bfloat16, "cuda"), random((64, 512), torch.bfloat16, "cuda")
    want = [cublas_lt.linear(x, weight, b) for b in (bias, others[0])]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = [cublas_lt.linear(x, weight, b) for b in (bias, others[0])]
    graph.replay()
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    x.copy_(others[1])
    graph.replay()
    assert torch.equal(got[0], cublas_lt.linear(x, weight, bias))


@GPU
def test_what_is_refused():
    x, weight, bias = make(16, 24, 32)
    for args in (
        (x.float(), weight.float(), bias.float()), (x, weight[:, :24], bias), (x, weight[:20], bias[:20]),
        (x, weight, bias[:16]), (x.cpu(), weight, bias), (x[:, :24], weight, bias), (x, weight, bias.half()),
    ):  # fmt: skip
        assert not cublas_lt.serves(*args)
        with pytest.raises(ValueError, match="multiples"):
            cublas_lt.linear(*args)
    assert cublas_lt.linear(x[:0], weight, bias).shape == (0, 24)
