"""Models without values: what they cost, and which configurations are refused."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from nanoemox.build import build_empty
from nanoemox.bundle.meta import without_parameters
from nanoemox.config import NanoEmoXConfig
from nanoemox.errors import CheckpointError

DEMO = NanoEmoXConfig.preset("demo")


@pytest.mark.parametrize("preset", ["demo", "nano-emox-2.2b"])
def test_parameters_are_on_meta_and_buffers_are_filled(preset):
    model = build_empty(NanoEmoXConfig.preset(preset), preset)
    assert [name for name, parameter in model.named_parameters() if not parameter.is_meta] == []
    assert [name for name, buffer in model.named_buffers() if buffer.is_meta] == []
    base = model.language.base
    assert base.lm_head.weight is base.model.embed_tokens.weight


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_full_size_is_built_in_little_memory():
    def status(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) << 10

    build_empty(DEMO, "demo")  # imports
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    build_empty(NanoEmoXConfig.preset("nano-emox-2.2b"), "full size")
    assert status("VmHWM") - before < 300 << 20


def test_shared_parameters_stay_shared_and_frozen_ones_frozen():
    def make():
        first, second = nn.Module(), nn.Module()
        first.weight = second.weight = nn.Parameter(torch.ones(2))
        first.scale = nn.Parameter(torch.ones(2), requires_grad=False)
        return nn.ModuleList([first, second])

    first, second = without_parameters(make)
    assert first.weight is second.weight and first.weight.is_meta and first.weight.requires_grad
    assert first.scale.is_meta and not first.scale.requires_grad


def test_another_thread_builds_with_values_meanwhile():
    layers = []

    def make():
        thread = threading.Thread(target=lambda: layers.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
        return nn.Linear(2, 2)

    assert without_parameters(make).weight.is_meta
    assert not layers[0].weight.is_meta and not nn.Linear(2, 2).weight.is_meta


def part(name, **changes):
    return replace(DEMO, **{name: replace(getattr(DEMO, name), **changes)})


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (
            part("vision", activation="bogus"),
            "vision.activation 'bogus' does not exist; known are .*quick_gelu",
        ),
        (part("audio", activation="bogus"), "audio.activation 'bogus' does not exist"),
        (part("audio", conv_activation=""), "audio.conv_activation '' does not exist"),
        (part("audio", conv_norm="bogus"), "no model .*bogus"),
        (part("audio", conv_stride=(5, 2)), "no model .*convolutional"),
        (part("language", model_type="llama", heads=7, kv_heads=1), "no model .*multiple of"),
        (part("lora", targets=("bogus",)), "no model .*bogus"),
        (part("language", mlp_size=2**63), "no model .*[Oo]verflow"),
        (part("face", mlp_ratio=1e300), "no model .*[Oo]verflow"),
        (part("face", feature_size=2**40), "no model .*[Oo]verflow"),
        (part("vision", image_size=2**31), "no model .*allocate memory"),
    ],
)
def test_a_wrong_configuration_is_named(config, match):
    with pytest.raises(CheckpointError, match=f"^a file: .*{match}"):
        build_empty(config, "a file")


@pytest.mark.parametrize("kind", [AttributeError, IndexError, KeyError, RuntimeError, TypeError])
def test_a_bug_is_not_disguised(monkeypatch, kind):
    def broken(config):
        raise kind("a bug")

    monkeypatch.setattr("nanoemox.build.NanoEmoX", broken)
    with pytest.raises(kind, match="a bug"):
        build_empty(DEMO, "a file")
