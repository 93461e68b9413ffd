"""Bundles of published size with random weights. The caller removes the folder that they are made in."""

from dataclasses import replace
from pathlib import Path

from nanoemox import NanoEmoXConfig
from nanoemox.weights import random_bundle


def encoder_config(layers: int = 24) -> NanoEmoXConfig:
    """The published model with one language-model layer and `layers` layers in both transformer encoders."""
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
    """Make a bundle of `encoder_config`, about 1.6 GB at 24 layers; returns its folder."""
    return random_bundle(encoder_config(layers), folder / f"encoders-{layers}")
