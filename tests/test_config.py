"""Configurations: presets, JSON and back, and mistakes named by their key."""

from dataclasses import replace

import pytest

from nanoemox.config import PRESETS, FusionConfig, NanoEmoXConfig
from nanoemox.errors import CheckpointError, UsageError


@pytest.mark.parametrize("name", PRESETS)
def test_json_and_back(name, tmp_path):
    config = NanoEmoXConfig.preset(name)
    config.to_json(tmp_path / "config.json")
    assert NanoEmoXConfig.from_json(tmp_path / "config.json") == config
    merged = replace(config, lora=None)
    merged.to_json(tmp_path / "config.json")
    assert NanoEmoXConfig.from_json(tmp_path / "config.json") == merged


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"fusion": {"width": 3}}, "unknown key fusion.width; known are dropout"),
        ({"fusion": 3}, "fusion must be an object"),
        ({"vision": {"taps": 12}}, "vision.taps must be a list of int"),
        ({"vision": {"layers": True}}, "vision.layers must be int"),
        ({"fusion": {"type": "magic"}}, "'magic' is not one of multiscale"),
        ({"audio_branch": {"type": "magic"}}, "'magic' is not one of qformer"),
        ({"audio": {"statistics": "clip"}}, "'clip' is not sample or batch"),
        ({"language": {"model_type": "gpt2"}}, "'gpt2' is neither"),
        ({"vision": {"heads": 0}}, "heads 0 must be at least 1"),
        ({"vision": {"heads": 5}}, "vision: a width of 1024 is not divisible by 5 heads"),
        ({"vision": {"taps": []}}, "taps is empty"),
        ({"vision": {"std": [0.1, 0.2, 0.0]}}, "std .* is out of range"),
        ({"fusion": {"dropout": 1.5}}, "dropout 1.5"),
        ({"qformer": {"heads": 7}}, "qformer"),
        ({"face": {"heads": [1, 2]}}, "four stages"),
        ({"language": {"kv_heads": 5}}, "language"),
        ({"audio": {"taps": [16, 18]}}, "fusion pairs taps"),
        ({"audio": {"hidden_size": 768}, "fusion": {"type": "densemoe"}}, "encoders of one width"),
    ],
)
def test_mistakes_are_named_by_their_key(values, match):
    with pytest.raises(UsageError, match=match):
        NanoEmoXConfig.from_dict(values)


def test_a_file_that_is_no_configuration(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json"):
        NanoEmoXConfig.from_json(tmp_path / "config.json")


def test_integers_are_numbers():
    assert NanoEmoXConfig.from_dict({"fusion": {"dropout": 0}}).fusion == FusionConfig(dropout=0)
