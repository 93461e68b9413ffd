"""Bundles of the true size with random weights, for benchmarks: made once in a folder that the caller
removes.
"""

from dataclasses import replace
from pathlib import Path

from nanoemox import NanoEmoXConfig
from nanoemox.weights import random_bundle


def encoder_config(layers: int = 24) -> NanoEmoXConfig:
    """The published model with a language model of one layer, and both transformers of `layers` layers."""
    config = NanoEmoXConfig.preset("nano-emox-2.2b")
    last = layers / 24
    return replace(
        config,
        vision=replace(config.vision, layers=layers, taps=_scaled(config.vision.taps, last),
                       feature_layer=_scaled((config.vision.feature_layer,), last)[0]),
        audio=replace(config.audio, layers=layers, taps=_scaled(config.audio.taps, last),
                      feature_layers=_scaled(config.audio.feature_layers, last)),
        language=replace(config.language, layers=1),
    )  # fmt: skip


def _scaled(layers: tuple[int, ...], factor: float) -> tuple[int, ...]:
    return tuple(round(layer * factor) for layer in layers)


def encoder_bundle(folder: Path, layers: int = 24) -> Path:
    """A bundle for the encoders alone (about 1.6 GB at 24 layers)."""
    return random_bundle(encoder_config(layers), folder / f"encoders-{layers}")
