"""Sizes and constants of the model: a configuration for each part, the whole model's, and the presets."""

from .constants import FRAME_SIZE, FRAMES, SAMPLE_RATE, WINDOW_SAMPLES, WINDOWS
from .model import PRESETS, NanoEmoXConfig
from .parts import (
    BRANCH_TYPES,
    FUSION_TYPES,
    AudioConfig,
    BranchConfig,
    FaceConfig,
    FusionConfig,
    LanguageConfig,
    LoRAConfig,
    QFormerConfig,
    VisionConfig,
)

__all__ = [
    "BRANCH_TYPES",
    "FRAMES",
    "FRAME_SIZE",
    "FUSION_TYPES",
    "PRESETS",
    "SAMPLE_RATE",
    "WINDOWS",
    "WINDOW_SAMPLES",
    "AudioConfig",
    "BranchConfig",
    "FaceConfig",
    "FusionConfig",
    "LanguageConfig",
    "LoRAConfig",
    "NanoEmoXConfig",
    "QFormerConfig",
    "VisionConfig",
]
