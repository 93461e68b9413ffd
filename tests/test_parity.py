"""Our modules against numbers of the official ones: compact fixtures always, the full ones where present."""

import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from make_fixtures import digest, probe_indices
from official import NARROW
from parity import GROUPS
from paths import SHARED

import nanoemox
from nanoemox.build import build_empty
from nanoemox.bundle.official_names import shapes
from nanoemox.config import BRANCH_TYPES, FUSION_TYPES, BranchConfig, FusionConfig, QFormerConfig
from nanoemox.model import NanoEmoX
from nanoemox.weights.sizes import infer_config

PACKED = np.load(Path(__file__).parent / "fixtures" / "parity.npz")
INPUTS = {
    name.split("|")[1]: torch.from_numpy(PACKED[name]) for name in PACKED.files if name.startswith("given|")
}
FULL = SHARED / "parity" / "expected.safetensors"
_computed: dict[str, dict[str, torch.Tensor]] = {}


def computed(group: str) -> dict[str, torch.Tensor]:
    if group not in _computed:
        with torch.inference_mode():
            _computed[group] = GROUPS[group](INPUTS)
    return _computed[group]


def tolerance(name: str, peak: float) -> float:
    relative = 1e-4 if name.startswith(("resample/", "audio_load/mono44k")) else 2e-5
    return relative * peak + 1e-6


def check_compact(name: str, got: np.ndarray) -> None:
    if f"whole|{name}" in PACKED.files:
        assert (got == PACKED[f"whole|{name}"]).all(), name
        return
    *shape, peak, norm = PACKED[f"about|{name}"]
    assert got.shape == tuple(int(d) for d in shape), name
    flat = got.ravel()
    assert np.abs(flat[probe_indices(flat.size)] - PACKED[f"probes|{name}"]).max() <= tolerance(name, peak), (
        name
    )
    assert np.linalg.norm(flat.astype(np.float64)) == pytest.approx(norm, rel=1e-5), name


def expected_names() -> set[str]:
    return {name.split("|")[1] for name in PACKED.files if name.startswith(("probes|", "whole|"))}


@pytest.mark.parametrize("group", GROUPS)
def test_group_matches_the_compact_fixtures(group):
    for name, value in computed(group).items():
        check_compact(name, value.numpy())


def test_every_expected_tensor_is_computed():
    ours = {name for group in GROUPS for name in computed(group)}
    assert expected_names() - ours == {
        f"audio_load/{case}/raw_audio_every50" for case in ("mono44k", "short", "stereo")
    }


@pytest.mark.skipif(not FULL.is_file(), reason="the full fixtures are not here")
@pytest.mark.parametrize("group", GROUPS)
def test_group_matches_the_full_fixtures(group):
    from safetensors import safe_open

    with safe_open(FULL, "pt") as full:
        for name, value in computed(group).items():
            expected = full.get_tensor(name)
            assert expected.shape == value.shape, name
            if expected.is_floating_point():
                assert (value - expected).abs().max() <= tolerance(name, expected.abs().max().item()), name
            else:
                assert (value == expected).all(), name


@pytest.mark.parametrize(("case", "rate"), [("stereo", 16000), ("short", 16000), ("mono44k", 44100)])
def test_sound_reaches_hubert_as_in_the_official_code(case, rate, tmp_path):
    samples = INPUTS[f"audio_load/{case}/wave_i16"].numpy()
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.ascontiguousarray(samples.T).tobytes())
    clip = nanoemox.read_clip(tmp_path / "x.wav")
    check_compact(f"audio_load/{case}/raw_audio_every50", clip.audio[:, None, ::50])


def test_official_names_and_sizes(behaviour):
    config = nanoemox.NanoEmoXConfig.preset("nano-emox-2.2b")
    with torch.device("meta"):
        model = NanoEmoX(config)
    assert sum(p.numel() for p in model.parameters()) == 2_319_130_683
    ours = shapes(model, config)

    def starting(*prefixes: str) -> dict:
        return {name: shape for name, shape in ours.items() if name.startswith(prefixes)}

    head = {
        "llama_model.base_model.model.lm_head.weight": ours[
            "llama_model.base_model.model.model.embed_tokens.weight"
        ]
    }
    groups = {
        "fusion": starting("multi_"),
        "video_branch": starting("video_"),
        "audio_branch": starting("audio_"),
        "acoustic_encoder": starting("acoustic_encoder."),
        "face": starting("facial_encoder.")
        | {f"facial_encoder.lynorm.{p}": (256,) for p in ("weight", "bias")},
        "llama_model": starting("llama_model.") | head,
    }
    for group, tensors in groups.items():
        assert digest(tensors) == behaviour["keys"][group], group


@pytest.mark.parametrize("kind", ["attention", "qformer", "densemoe"])
def test_official_names_of_the_fusion_variants(behaviour, kind):
    config = replace(nanoemox.NanoEmoXConfig(), fusion=FusionConfig(type=kind))
    ours = shapes(build_empty(config, kind), config)
    tensors = {
        name: shape
        for name, shape in ours.items()
        if name.startswith(("multi_", "attention_mlp.", "fc_att."))
    }
    assert digest(tensors) == behaviour["keys"][f"variant_{kind}"]


@pytest.mark.parametrize("fusion", FUSION_TYPES)
@pytest.mark.parametrize("branch", BRANCH_TYPES)
def test_variants_are_recognised_by_their_tensors(fusion, branch):
    base = replace(NARROW, qformer=QFormerConfig(hidden_size=64, heads=1, mlp_size=48))
    kind = {"densemoe": {"router_size": 8, "experts": 2}, "multiscale": {"hidden_size": 24}}.get(fusion, {})
    variant = replace(
        base,
        fusion=FusionConfig(type=fusion, **kind),
        video_branch=BranchConfig(type=branch, tokens=7 if branch == "qformer" else 32),
        audio_branch=BranchConfig(type=branch, tokens=9 if branch == "qformer" else 32, positions=8),
    )
    start = replace(nanoemox.NanoEmoXConfig(), name="narrow", vision=NARROW.vision, audio=NARROW.audio)
    start = replace(start, language=NARROW.language)
    inferred = infer_config(start, shapes(build_empty(variant, fusion), variant))
    if branch != "qformer" and fusion != "qformer":  # no Q-Former is left to tell its sizes
        inferred = replace(inferred, qformer=variant.qformer)
    assert inferred == variant
