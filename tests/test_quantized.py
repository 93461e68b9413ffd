"""int8 and int4: the product of many rows, models loaded, saved and loaded again, what is refused."""

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
from nanoemox_kernels.linear import quantized as matrix

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


@pytest.mark.parametrize("form", matrix.QUANTIZERS)
@pytest.mark.parametrize(("M", "K", "N"), [(1, 64, 1), (7, 128, 70), (13, 192, 64), (25, 512, 130)])
def test_products_are_those_of_the_dequantised_matrix(isa, form, M, K, N):
    torch.manual_seed(0)
    weight, bias = torch.randn(N, K), torch.randn(N)
    held = matrix.QUANTIZERS[form](weight)
    exact = matrix.dequantize(held).double().t()
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(M, 2 * K)[:, ::2].to(dtype)  # a stride that is not 1
        for name, function in ACTIVATIONS.items():
            got = matrix.quantized_linear(x, held, bias, activation=name).double()
            want = function(x.double() @ exact + bias.double())
            assert (got - want).abs().max() < 0.04 * K**0.5, name  # activations have 8 bits
        before = torch.randn(M, N).to(dtype)
        for combine, expected in (
            ("add", before + x.double() @ exact),
            ("multiply", before * (x.double() @ exact)),
        ):
            out = before.clone()
            assert matrix.quantized_linear(x, held, out=out, combine=combine) is out
            assert (out - expected).abs().max() < 0.15 * K**0.5


@pytest.mark.parametrize("form", matrix.QUANTIZERS)
def test_rows_do_not_see_each_other_and_nan_stays_in_its_row(isa, form):
    torch.manual_seed(0)
    held, x = matrix.QUANTIZERS[form](torch.randn(96, 256)), torch.randn(9, 256)
    together = matrix.quantized_linear(x, held)
    assert torch.equal(matrix.quantized_linear(x[3:4], held)[0], together[3])
    x[3, 7], x[4, 8] = float("nan"), float("inf")
    found = matrix.quantized_linear(x, held)
    assert found[3].isnan().all() and found[4].isnan().all()
    rest = [0, 1, 2, 5, 6, 7, 8]
    assert torch.equal(found[rest], together[rest])
    assert torch.equal(matrix.quantized_linear(torch.zeros(2, 256), held), torch.zeros(2, 96))
    assert matrix.quantized_linear(torch.zeros(0, 256), held).shape == (0, 96)


def test_what_a_product_refuses():
    held = matrix.quantize_int8(torch.randn(8, 128))
    with pytest.raises(ValueError, match=r"want x \[\.\.\., 128\].*got torch.float32 \[2, 64\]"):
        matrix.quantized_linear(torch.zeros(2, 64), held)
    with pytest.raises(ValueError, match="got torch.float16"):
        matrix.quantized_linear(torch.zeros(2, 128, dtype=torch.float16), held)
    with pytest.raises(ValueError, match="columns that 64 divides"):
        matrix.quantized_linear(torch.zeros(2, 70), matrix.quantize_int8_rows(torch.randn(8, 70)))
    with pytest.raises(ValueError, match="want a contiguous out"):
        matrix.quantized_linear(torch.zeros(2, 128), held, out=torch.zeros(2, 9))


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
    held = load_file(tmp_path / "a" / WEIGHTS)
    parts = {name: tensor.dtype for name, tensor in held.items() if ".layers." in name and name.startswith("llama")
             and name.endswith("_proj.weight")}  # fmt: skip
    few = {name for name in parts if name.endswith(("k_proj.weight", "v_proj.weight"))}
    assert {parts[name] for name in few} == {torch.float32}
    assert {parts[name] for name in parts.keys() - few} == {{"int8": torch.int8, "int4": torch.uint8}[form]}
    assert not any(".lora_" in name for name in held)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["quantize"] == form
    again = nanoemox.load(tmp_path / "a", dtype="float32", device="cpu")
    one, two = (m.answer(clip(), max_new_tokens=12) for m in (model, again))
    assert again.quantize == form and one.text == two.text and one.gates == two.gates
    again.save(tmp_path / "b")
    assert load_file(tmp_path / "b" / WEIGHTS).keys() == held.keys()
    with pytest.raises(UsageError, match=f"holds {form} weights"):
        nanoemox.load(tmp_path / "a", quantize="int4" if form == "int8" else "int8")
    with pytest.raises(UsageError, match="accelerated form"):
        nanoemox.load(tmp_path / "a", fast=False)


def test_a_quantised_bundle_is_audited(tmp_path):
    from safetensors.torch import save_file

    nanoemox.load("demo", quantize="int8", device="cpu").save(tmp_path / "a")
    held = load_file(tmp_path / "a" / WEIGHTS)
    name = next(name for name in held if name.endswith(".scales"))
    save_file({n: t for n, t in held.items() if n != name}, tmp_path / "a" / WEIGHTS)
    with pytest.raises(CheckpointError, match=f"missing: {name}"):
        nanoemox.load(tmp_path / "a")
    name = next(name for name in held if name.endswith("q_proj.weight.scales") and name.startswith("llama"))
    save_file(
        held | {name: held[name][:, 0].float()}, tmp_path / "a" / WEIGHTS
    )  # a scale a row, as it once was
    with pytest.raises(CheckpointError, match=r"misshapen: .*is made again from its weights"):
        nanoemox.load(tmp_path / "a")


def test_features_of_int8_encoders_stay_close():
    """The stated error: docs/quantized.md."""
    frames, audio = torch.as_tensor(clip().frames)[None], torch.as_tensor(clip().audio)[None]
    exact, got = (
        nanoemox.load("demo", quantize=form, dtype="float32", device="cpu").encode_streams(frames, audio)
        for form in (None, "int8")
    )
    for name in ("visual", "speech", "face", "fusion"):
        one, two = getattr(exact, name), getattr(got, name)
        assert (one - two).norm() < 0.02 * one.norm(), name


def test_branches_and_heads_keep_the_models_dtype():
    """docs/quantized.md: the layers of the encoders alone are int8."""
    model = nanoemox.load("demo", quantize="int8", dtype="bfloat16", device="cpu")
    int8 = {
        name for name, part in model.named_children() if any(t.dtype == torch.int8 for t in part.buffers())
    }
    assert int8 - {"language"} == {"vision", "audio", "face"}
