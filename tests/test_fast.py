"""The accelerated model against the reference: the same weights, the same results, less work and memory."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from official import NARROW as OFFICIAL

import nanoemox
from nanoemox.config import FaceConfig
from nanoemox.errors import CheckpointError
from nanoemox.fast.accelerate import accelerate
from nanoemox.fast.face import FastFace
from nanoemox.fast.layers.tensor_store import TensorStore
from nanoemox.fast.model import FastNanoEmoX
from nanoemox.fast.qformer import FastQFormerBranch
from nanoemox.fast.support import why_not
from nanoemox.loading import fast_parts
from nanoemox.media import Clip
from nanoemox.model import NanoEmoX
from nanoemox.modules.face import FaceEncoder
from nanoemox.modules.qformer import build_branch
from nanoemox.weights import random_bundle

NARROW = replace(
    OFFICIAL, language=replace(OFFICIAL.language, vocab_size=1024)
)  # room for the demo's tokenizer
STREAMS = ("visual", "speech", "face", "fusion", "gates", "face_attention")


def batch(B=2, seed=0):
    random = np.random.default_rng(seed)
    frames = random.integers(0, 256, (B, 8, 3, 224, 224), dtype=np.uint8)
    return torch.from_numpy(frames), torch.from_numpy(
        random.standard_normal((B, 8, 32000)).astype(np.float32) / 10
    )


def outputs(encoded):
    tensors = {name: getattr(encoded, name) for name in STREAMS} | encoded.features
    return {name: tensor.float() for name, tensor in tensors.items() if tensor is not None}


@torch.inference_mode()
def encode(source, fast, dtype, frames, audio):
    return outputs(nanoemox.load(source, fast=fast, dtype=dtype, device="cpu").encode_streams(frames, audio))


def assert_same(got, expected, bound):
    assert got.keys() == expected.keys()
    for name in expected:
        error = (got[name] - expected[name]).abs().max() / expected[name].abs().max().clamp_min(1e-30)
        assert error <= bound, f"{name}: {error:.2e}"


@pytest.mark.parametrize("present", ["frames and audio", "frames", "audio"])
def test_demo_in_fp32(present):
    frames, audio = batch()
    streams = (frames if present != "audio" else None, audio if present != "frames" else None)
    assert_same(encode("demo", True, "float32", *streams), encode("demo", False, "float32", *streams), 2e-5)


def test_demo_in_bf16_errs_no_more_than_the_reference():
    streams = batch()
    exact, low, got = (
        encode("demo", f, d, *streams) for f, d in ((0, "float32"), (0, "bfloat16"), (1, "bfloat16"))
    )
    for name in exact:
        peak = exact[name].abs().max()
        error, own = ((x[name] - exact[name]).abs().max() / peak for x in (got, low))
        assert error <= 2 * own + torch.finfo(torch.bfloat16).eps, f"{name}: {error:.2e}, reference {own:.2e}"


def variants():
    vision, audio = NARROW.vision, NARROW.audio
    yield "narrow", NARROW
    yield (
        "gelu and other taps",
        replace(NARROW, vision=replace(vision, activation="gelu", taps=vision.taps[::-1])),
    )
    last = (*audio.taps[:-1], audio.layers)
    yield "tap of the final norm", replace(NARROW, audio=replace(audio, taps=last))
    yield "post-norm audio", replace(NARROW, audio=replace(audio, stable_layer_norm=False))
    yield "group norm front end", replace(NARROW, audio=replace(audio, conv_norm="group", conv_bias=False))
    yield "joint statistics", replace(NARROW, audio=replace(audio, statistics="batch"))
    yield "normalised faces", replace(NARROW, face=replace(NARROW.face, imagenet_normalize=True))
    yield "another fusion", replace(NARROW, fusion=replace(NARROW.fusion, type="attention"))
    yield (
        "edge taps",
        replace(
            NARROW,
            vision=replace(
                vision, taps=(4, 0, 4), feature_layer=4, activation="relu", patch_size=50, heads=4
            ),
            audio=replace(
                audio,
                taps=(0, 2, 2),
                feature_layers=(3, 1, 1),
                position_kernel=7,
                projection_layer_norm=False,
            ),
        ),
    )
    yield (
        "only embeddings",
        replace(
            NARROW,
            vision=replace(vision, taps=(0, 0, 0), feature_layer=0),
            audio=replace(
                audio, taps=(0, 0, 0), feature_layers=(0,), activation="relu", conv_activation="gelu_new"
            ),
        ),
    )
    ends = replace(
        audio, stable_layer_norm=False, taps=(4, 0, 3), feature_layers=(4,), conv_dim=(16, 8) * 3 + (24,)
    )
    yield "post-norm to the end", replace(NARROW, audio=ends)
    yield (
        "shifted windows",
        replace(NARROW, face=replace(NARROW.face, depths=(2, 3, 1, 2), window_size=4, mlp_ratio=3.0)),
    )
    yield (
        "parts without a fast form",
        replace(
            NARROW,
            vision=replace(vision, activation="mish"),
            audio=replace(audio, position_batch_norm=True),
            video_branch=replace(NARROW.video_branch, type="mean"),
            audio_branch=replace(NARROW.audio_branch, type="attention"),
        ),
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return lambda name, config: random_bundle(config, folder / name, dtype="float32")


@pytest.mark.parametrize(("name", "config"), variants(), ids=lambda v: v if isinstance(v, str) else "")
def test_every_configuration(bundle, name, config):
    folder, streams = bundle(name, config), batch(3)
    assert_same(encode(folder, True, "float32", *streams), encode(folder, False, "float32", *streams), 2e-5)


def test_parts_without_a_fast_form_stay_the_reference_and_are_reported():
    mean = replace(NARROW.video_branch, type="mean")
    config = replace(NARROW, fusion=replace(NARROW.fusion, type="attention"), video_branch=mean)
    reasons = why_not(config, torch.device("cpu"))
    assert reasons["fusion"] == "variant attention" and reasons["vision"] == reasons["face"] == ""
    assert reasons["video_branch"] == "has no fused op" and reasons["audio_branch"] == ""
    assert fast_parts(config, torch.device("cpu"))["video_branch"] == "reference (has no fused op)"
    model = random_model(config)
    parts = dict(model.named_children())
    unchanged = {name for name, part in accelerate(model).named_children() if part is parts[name]}
    assert unchanged == {name for name, reason in reasons.items() if reason}


def random_model(config=NARROW):
    return NanoEmoX(config).eval().requires_grad_(False)


@torch.inference_mode()
def test_layers_that_are_not_read_are_not_run():
    config = replace(NARROW, audio=replace(NARROW.audio, taps=(1, 2, 1), feature_layers=(1, 2)))
    model, streams = random_model(config), batch(1)
    expected = outputs(model.encode_streams(*streams))
    for name, parameter in model.named_parameters():
        if name.startswith("vision.") and (".layers.3." in name or "post_layernorm" in name):
            parameter.fill_(torch.nan)
        if name.startswith("audio.") and (
            ".layers.2." in name or name.startswith("audio.model.encoder.layer_norm")
        ):
            parameter.fill_(torch.nan)
        if name.startswith("face.swin.layernorm"):
            parameter.fill_(torch.nan)
    assert_same(outputs(accelerate(model).encode_streams(*streams)), expected, 2e-5)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("window", "size"), [(2, (96, 64)), (2, (70, 90)), (7, (230, 250)), (7, (256, 224)), (7, (448, 230))]
)
def test_frames_of_any_size(window, size):
    face = FaceConfig(
        embed_dim=8,
        depths=(2, 2, 2, 2),
        heads=(1, 2, 2, 4),
        feature_size=16,
        window_size=window,
        mlp_ratio=2.5,
    )
    config = replace(NARROW, face=face)
    frames = torch.randint(0, 256, (1, 3, 3, *size))
    reference = FaceEncoder(face).eval().requires_grad_(False)
    expected = reference(frames)
    weights = TensorStore.of(torch.nn.ModuleDict({"face": reference}), config)
    fast = FastFace(face, weights.under("facial_encoder.facexformer."))
    for _ in range(2):
        assert (fast(frames) - expected).abs().max() <= 2e-5 * expected.abs().max()
        fast(frames.repeat(1, 1, 1, 2, 2))  # a call with another size in between changes nothing


def fast_branch(reference, config):
    weights = TensorStore.of(torch.nn.ModuleDict({"audio_branch": deepcopy(reference)}), config)
    return FastQFormerBranch(config.qformer, weights, "audio")


@torch.inference_mode()
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("B", "T"), [(1, 8), (1, 1), (3, 5)])
def test_a_qformer_of_any_depth(layers, B, T):
    torch.manual_seed(0)
    config = replace(NARROW, qformer=replace(NARROW.qformer, layers=layers))
    reference = build_branch(config.audio_branch, config.qformer, 64, 48).eval().requires_grad_(False)
    for parameter in reference.parameters():  # no bias is zero, no norm the identity
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    low = deepcopy(reference).bfloat16()
    features = torch.randn(B, T, 64).bfloat16()
    fast, fast_low = fast_branch(reference, config), fast_branch(low, config)
    expected, exact = reference(features.float()), deepcopy(low).double()(features.double())
    own = (low(features) - exact).abs().max() / exact.abs().max()
    for _ in range(2):  # results computed at load are not overwritten
        assert (fast(features.float()) - expected).abs().max() <= 2e-5 * expected.abs().max()
        error = (fast_low(features) - exact).abs().max() / exact.abs().max()
        assert error <= 2 * own + torch.finfo(torch.bfloat16).eps, f"{error:.2e}, reference {own:.2e}"
    for branch in (reference, fast):
        with pytest.raises(ValueError, match="9 time steps, but the position table holds 8"):
            branch(torch.zeros(B, 9, 64))


@torch.inference_mode()
def test_results_without_packed_weights_are_the_same(monkeypatch):
    monkeypatch.setattr("nanoemox.fast.layers.linear.multiplies_packed", lambda device, dtype: False)
    monkeypatch.setattr("nanoemox.fast.layers.attention.serves", lambda *tensors: False)
    model, streams = random_model(), batch()
    expected = outputs(model.encode_streams(*streams))
    fast = accelerate(model)
    assert_same(outputs(fast.encode_streams(*streams)), expected, 2e-5)
    fast.to("meta").encode_streams(*(stream.to("meta") for stream in streams))  # no tensor stays on the CPU


@torch.inference_mode()
def test_a_fast_model_moves_and_has_a_state_dict(tmp_path):
    fast, streams = nanoemox.load("demo", dtype="bfloat16", device="cpu"), batch(1)
    assert fast.dtype == torch.bfloat16 and fast.device.type == "cpu"
    expected = outputs(fast.encode_streams(*streams))
    torch.save(fast.state_dict(), tmp_path / "state.pt")
    assert not any(tensor.is_mkldnn for tensor in torch.load(tmp_path / "state.pt").values())
    assert_same(outputs(fast.to(torch.float32).encode_streams(*streams)), expected, 0.05)
    fast.to("meta").encode_streams(*(stream.to("meta") for stream in streams))


@torch.inference_mode()
def test_frames_that_hold_no_window_are_refused():
    fast = nanoemox.load("demo", fast=True, dtype="float32", device="cpu")
    with pytest.raises(ValueError, match="frames too small"):
        fast.face(torch.zeros(1, 3, 3, 96, 64))


def peak(call):
    """Peak of the bytes that PyTorch's allocator holds during the call."""
    call()
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    allocated = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            allocated += event.nbytes()
            highest = max(highest, allocated)
    return highest


@torch.inference_mode()
@pytest.mark.parametrize("part", ["vision", "audio"])
def test_memory_does_not_grow_with_the_number_of_layers(part):
    """The memory of the reference does."""
    frames, audio = batch(1)
    inputs = frames if part == "vision" else audio
    peaks = []
    for layers in (4, 12):
        vision = replace(NARROW.vision, layers=layers, taps=(1, 2, layers), feature_layer=layers)
        vision = replace(vision, hidden_size=128, patch_size=14)
        sound = replace(
            NARROW.audio, layers=layers, taps=(1, 2, layers), feature_layers=(1, layers), mlp_size=2048
        )
        model = random_model(replace(NARROW, vision=vision, audio=sound))
        reference = peak(lambda: getattr(model, part)(inputs))  # noqa: B023
        fast = getattr(accelerate(model), part)
        peaks.append((peak(lambda: fast(inputs)), reference))  # noqa: B023
    assert peaks[0][0] == peaks[1][0] < 0.8 * peaks[1][1]


def clip():
    frames, audio = batch(1)
    return Clip(
        frames=frames[0].numpy(), audio=audio[0].numpy(), subtitle="fine", source="made", duration=16.0
    )


def test_answers_are_the_references():
    reference, fast = (
        nanoemox.load("demo", fast=fast, dtype="float32", device="cpu") for fast in (False, True)
    )
    for task in ("mer", "erg"):
        expected, got = (model.answer(clip(), task, max_new_tokens=24) for model in (reference, fast))
        assert got.text == expected.text and got.tokens == expected.tokens
        np.testing.assert_allclose(got.gates, expected.gates, atol=1e-5)
        np.testing.assert_allclose(got.face_attention, expected.face_attention, atol=1e-5)


def test_saving_gives_the_bundle_back(tmp_path):
    fast = nanoemox.load("demo", fast=True, dtype="float32", device="cpu")
    assert isinstance(fast, FastNanoEmoX) and fast.fast
    fast.save(tmp_path / "fast")
    nanoemox.load("demo", fast=False, dtype="float32", device="cpu").save(tmp_path / "slow")
    assert (tmp_path / "fast/model.safetensors").read_bytes() == (
        tmp_path / "slow/model.safetensors"
    ).read_bytes()
    reloaded = nanoemox.load(tmp_path / "fast", fast=True, dtype="float32", device="cpu")
    assert reloaded.answer(clip(), max_new_tokens=8).text == fast.answer(clip(), max_new_tokens=8).text
    streams = batch(1)
    with torch.inference_mode():
        assert_same(outputs(reloaded.encode_streams(*streams)), outputs(fast.encode_streams(*streams)), 0)
    random_bundle("demo", tmp_path / "fast", seed=1)
    with pytest.raises(CheckpointError, match="has changed since"):
        reloaded.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()
