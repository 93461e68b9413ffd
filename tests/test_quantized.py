"""int8 and int4: products of many rows, models loaded, saved and loaded again, invalid arguments."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import nanoemox
from nanoemox.bundle.folder import WEIGHTS
from nanoemox.errors import CheckpointError, UsageError
from nanoemox.media import Clip
from nanoemox_kernels import _native
from nanoemox_kernels.linear import quantized

pytestmark = pytest.mark.skipif(_native.library is None, reason=f"no C++ library: {_native.why_not}")
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@pytest.fixture(params=_native.isa_levels() if _native.library is not None else [])
def isa(request):
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


@pytest.mark.parametrize("form", quantized.QUANTIZERS)
@pytest.mark.parametrize(("M", "K", "N"), [(1, 64, 1), (7, 128, 70), (13, 192, 64), (25, 512, 130)])
def test_products_are_those_of_the_dequantised_matrix(isa, form, M, K, N):
    torch.manual_seed(0)
    weight, bias = torch.randn(N, K), torch.randn(N)
    matrix = quantized.QUANTIZERS[form](weight)
    exact = quantized.dequantize(matrix).double().t()
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(M, 2 * K)[:, ::2].to(dtype)  # a stride that is not 1
        for name, function in ACTIVATIONS.items():
            got = quantized.quantized_linear(x, matrix, bias, activation=name).double()
            expected = function(x.double() @ exact + bias.double())
            assert (got - expected).abs().max() < 0.04 * K**0.5, name  # activations have 8 bits
        before = torch.randn(M, N).to(dtype)
        for combine, expected in (
            ("add", before + x.double() @ exact),
            ("multiply", before * (x.double() @ exact)),
        ):
            out = before.clone()
            assert quantized.quantized_linear(x, matrix, out=out, combine=combine) is out
            assert (out - expected).abs().max() < 0.15 * K**0.5


@pytest.mark.parametrize("form", quantized.QUANTIZERS)
def test_rows_are_independent_and_nan_stays_in_its_row(isa, form):
    torch.manual_seed(0)
    matrix, x = quantized.QUANTIZERS[form](torch.randn(96, 256)), torch.randn(9, 256)
    batch = quantized.quantized_linear(x, matrix)
    assert torch.equal(quantized.quantized_linear(x[3:4], matrix)[0], batch[3])
    x[3, 7], x[4, 8] = float("nan"), float("inf")
    results = quantized.quantized_linear(x, matrix)
    assert results[3].isnan().all() and results[4].isnan().all()
    finite = [0, 1, 2, 5, 6, 7, 8]
    assert torch.equal(results[finite], batch[finite])
    assert torch.equal(quantized.quantized_linear(torch.zeros(2, 256), matrix), torch.zeros(2, 96))
    assert quantized.quantized_linear(torch.zeros(0, 256), matrix).shape == (0, 96)


def test_products_reject_unsupported_tensors():
    matrix = quantized.quantize_int8(torch.randn(8, 128))
    with pytest.raises(ValueError, match=r"want x \[\.\.\., 128\].*got torch.float32 \[2, 64\]"):
        quantized.quantized_linear(torch.zeros(2, 64), matrix)
    with pytest.raises(ValueError, match="got torch.float16"):
        quantized.quantized_linear(torch.zeros(2, 128, dtype=torch.float16), matrix)
    with pytest.raises(ValueError, match="columns that 64 divides"):
        quantized.quantized_linear(torch.zeros(2, 70), quantized.quantize_int8_rows(torch.randn(8, 70)))
    with pytest.raises(ValueError, match="want a contiguous out"):
        quantized.quantized_linear(torch.zeros(2, 128), matrix, out=torch.zeros(2, 9))


def clip():
    random = np.random.default_rng(0)
    return Clip(
        frames=random.integers(0, 256, (8, 3, 224, 224), dtype=np.uint8),
        audio=(random.standard_normal((8, 32000)) / 10).astype(np.float32),
        subtitle="hello",
        source="random",
        duration=2.0,
    )


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_quantised_bundle_gives_identical_outputs(form, tmp_path):
    model = nanoemox.load("demo", quantize=form, dtype="float32", device="cpu")
    assert model.quantize == form
    model.save(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    projections = {
        name: tensor.dtype
        for name, tensor in tensors.items()
        if name.startswith("llama") and ".layers." in name and name.endswith("_proj.weight")
    }
    kv = {name for name in projections if name.endswith(("k_proj.weight", "v_proj.weight"))}
    assert {projections[name] for name in kv} == {torch.float32}
    others = {projections[name] for name in projections.keys() - kv}
    assert others == {{"int8": torch.int8, "int4": torch.uint8}[form]}
    assert not any(".lora_" in name for name in tensors)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["quantize"] == form
    loaded = nanoemox.load(tmp_path / "a", dtype="float32", device="cpu")
    expected, reply = (m.answer(clip(), max_new_tokens=12) for m in (model, loaded))
    assert loaded.quantize == form and reply.text == expected.text and reply.gates == expected.gates
    loaded.save(tmp_path / "b")
    assert load_file(tmp_path / "b" / WEIGHTS).keys() == tensors.keys()
    with pytest.raises(UsageError, match=f"holds {form} weights"):
        nanoemox.load(tmp_path / "a", quantize="int4" if form == "int8" else "int8")
    with pytest.raises(UsageError, match="accelerated form"):
        nanoemox.load(tmp_path / "a", fast=False)


def test_a_quantised_bundle_is_audited(tmp_path):
    from safetensors.torch import save_file

    nanoemox.load("demo", quantize="int8", device="cpu").save(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    name = next(name for name in tensors if name.endswith(".scales"))
    save_file({n: t for n, t in tensors.items() if n != name}, tmp_path / "a" / WEIGHTS)
    with pytest.raises(CheckpointError, match=f"missing: {name}"):
        nanoemox.load(tmp_path / "a")
    name = next(
        name for name in tensors if name.endswith("q_proj.weight.scales") and name.startswith("llama")
    )
    # One scale per row: the format of earlier versions.
    save_file(tensors | {name: tensors[name][:, 0].float()}, tmp_path / "a" / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"misshapen: .*is made again from its weights"):
        nanoemox.load(tmp_path / "a")


def test_features_of_int8_encoders_stay_close():
    """The error that docs/quantized.md states."""
    frames, audio = torch.as_tensor(clip().frames)[None], torch.as_tensor(clip().audio)[None]
    exact, got = (
        nanoemox.load("demo", quantize=form, dtype="float32", device="cpu").encode_streams(frames, audio)
        for form in (None, "int8")
    )
    for name in ("visual", "speech", "face", "fusion"):
        expected, features = getattr(exact, name), getattr(got, name)
        assert (expected - features).norm() < 0.02 * expected.norm(), name


def test_branches_and_heads_keep_the_models_dtype():
    """Only the layers of the encoders are int8 (docs/quantized.md)."""
    model = nanoemox.load("demo", quantize="int8", dtype="bfloat16", device="cpu")
    int8 = {
        name for name, part in model.named_children() if any(t.dtype == torch.int8 for t in part.buffers())
    }
    assert int8 - {"language"} == {"vision", "audio", "face"}
