"""The accelerated model against the reference: the same weights, the same results, less work and memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from official import NARROW as OFFICIAL
from torch.utils._python_dispatch import TorchDispatchMode

import nanoemox
from nanoemox.fast import FastNanoEmoX, why_not
from nanoemox.media import Clip
from nanoemox.weights import random_bundle

NARROW = replace(OFFICIAL, language=replace(OFFICIAL.language, vocab_size=1024))  # room for the demo's tokenizer
STREAMS = ("visual", "speech", "face", "fusion", "gates", "face_attention")


def batch(B=2, seed=0):
    random = np.random.default_rng(seed)
    frames = random.integers(0, 256, (B, 8, 3, 224, 224), dtype=np.uint8)
    return torch.from_numpy(frames), torch.from_numpy(random.standard_normal((B, 8, 32000)).astype(np.float32) / 10)


def outputs(encoded):
    held = {name: getattr(encoded, name) for name in STREAMS} | encoded.features
    return {name: tensor.float() for name, tensor in held.items() if tensor is not None}


@torch.inference_mode()
def encode(source, fast, dtype, frames, audio):
    return outputs(nanoemox.load(source, fast=fast, dtype=dtype, device="cpu").encode_streams(frames, audio))


def assert_same(got, want, bound):
    assert got.keys() == want.keys()
    for name in want:
        error = (got[name] - want[name]).abs().max() / want[name].abs().max().clamp_min(1e-30)
        assert error <= bound, f"{name}: {error:.2e}"


@pytest.mark.parametrize("given", ["both", "frames", "audio"])
def test_demo_in_fp32(given):
    frames, audio = batch()
    streams = (frames if given != "audio" else None, audio if given != "frames" else None)
    assert_same(encode("demo", True, "float32", *streams), encode("demo", False, "float32", *streams), 2e-5)


def test_demo_in_bf16_errs_no_more_than_the_reference():
    streams = batch()
    exact, low, got = (encode("demo", f, d, *streams) for f, d in ((0, "float32"), (0, "bfloat16"), (1, "bfloat16")))
    for name in exact:
        peak = exact[name].abs().max()
        error, own = ((x[name] - exact[name]).abs().max() / peak for x in (got, low))
        assert error <= 2 * own + torch.finfo(torch.bfloat16).eps, f"{name}: {error:.2e}, reference {own:.2e}"


def variants():
    vision, audio = NARROW.vision, NARROW.audio
    yield "narrow", NARROW
    yield "gelu and other taps", replace(NARROW, vision=replace(vision, activation="gelu", taps=vision.taps[::-1]))
    last = (*audio.taps[:-1], audio.layers)
    yield "tap of the final norm", replace(NARROW, audio=replace(audio, taps=last))
    yield "post-norm audio", replace(NARROW, audio=replace(audio, stable_layer_norm=False))
    yield "group norm front end", replace(NARROW, audio=replace(audio, conv_norm="group", conv_bias=False))
    yield "joint statistics", replace(NARROW, audio=replace(audio, statistics="batch"))
    yield "normalised faces", replace(NARROW, face=replace(NARROW.face, imagenet_normalize=True))
    yield "another fusion", replace(NARROW, fusion=replace(NARROW.fusion, type="attention"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return lambda name, config: random_bundle(config, folder / name, dtype="float32")


@pytest.mark.parametrize(("name", "config"), variants(), ids=lambda v: v if isinstance(v, str) else "")
def test_every_configuration(bundle, name, config):
    folder, streams = bundle(name, config), batch(3)
    assert_same(encode(folder, True, "float32", *streams), encode(folder, False, "float32", *streams), 2e-5)


def test_what_has_no_fast_form_stays_the_reference_and_is_said():
    reasons = dict(why_not(replace(NARROW, fusion=replace(NARROW.fusion, type="attention"))))
    assert reasons["fusion"] == "variant attention" and reasons["vision"] == reasons["face"] == ""


@torch.inference_mode()
def test_frames_that_hold_no_window_are_refused():
    fast = nanoemox.load("demo", fast=True, dtype="float32", device="cpu")
    with pytest.raises(ValueError, match="frames too small"):
        fast.face(torch.zeros(1, 3, 3, 96, 64))


class Live(TorchDispatchMode):
    """Counts the largest number of tensors of one shape that were alive at a time."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.storages, self.most = shape, [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        import weakref

        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tuple(tensor.shape) == self.shape:
                self.storages.append(weakref.ref(tensor.untyped_storage()))
        alive = {storage.data_ptr() for ref in self.storages if (storage := ref()) is not None}
        self.most = max(self.most, len(alive))
        return out


@torch.inference_mode()
def test_no_layer_is_kept(bundle):
    """The hidden states that live at once do not grow with the number of layers."""
    counts = []
    for layers in (4, 12):
        vision = replace(NARROW.vision, layers=layers, taps=(1, 2, layers), feature_layer=layers)
        config = replace(NARROW, vision=vision)
        model = nanoemox.load(bundle(f"deep {layers}", config), fast=True, dtype="float32", device="cpu")
        patches = (vision.image_size // vision.patch_size) ** 2
        frames = torch.randint(0, 256, (1, 8, 3, vision.image_size, vision.image_size), dtype=torch.uint8)
        with Live((8, 1 + patches, vision.hidden_size)) as live:
            model.vision(frames)
        counts.append(live.most)
    assert counts[0] == counts[1] <= 6


def clip():
    frames, audio = batch(1)
    return Clip(frames=frames[0].numpy(), audio=audio[0].numpy(), subtitle="fine", source="made", duration=16.0)


def test_answers_are_the_references():
    slow, fast = (nanoemox.load("demo", fast=fast, dtype="float32", device="cpu") for fast in (False, True))
    for task in ("mer", "erg"):
        want, got = (model.answer(clip(), task, max_new_tokens=24) for model in (slow, fast))
        assert got.text == want.text and got.tokens == want.tokens
        np.testing.assert_allclose(got.gates, want.gates, atol=1e-5)
        np.testing.assert_allclose(got.face_attention, want.face_attention, atol=1e-5)


def test_saving_gives_the_bundle_back(tmp_path):
    fast = nanoemox.load("demo", fast=True, dtype="float32", device="cpu")
    assert isinstance(fast, FastNanoEmoX) and fast.fast
    fast.save(tmp_path / "fast")
    nanoemox.load("demo", fast=False, dtype="float32", device="cpu").save(tmp_path / "slow")
    assert (tmp_path / "fast/model.safetensors").read_bytes() == (tmp_path / "slow/model.safetensors").read_bytes()
    again = nanoemox.load(tmp_path / "fast", fast=True, dtype="float32", device="cpu")
    assert again.answer(clip(), max_new_tokens=8).text == fast.answer(clip(), max_new_tokens=8).text
