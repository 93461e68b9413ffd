"""The configuration of the whole model, its file, and the named ones."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UsageError
from .parts import (
    AudioConfig,
    BranchConfig,
    FaceConfig,
    FusionConfig,
    LanguageConfig,
    LoRAConfig,
    QFormerConfig,
    VisionConfig,
    check,
)
from .reading import build


@dataclass(frozen=True, kw_only=True)
class NanoEmoXConfig:
    """The whole model: one configuration per part, all frozen dataclasses of sizes and constants.

    `lora` is None once the adapters are merged. `quantize` names the form of a bundle's weights: "none",
    "int8" or "int4" (nanoemox.bundle.quantized). Raises UsageError for sizes that do not fit each other.
    """

    name: str = "nano-emox-2.2b"
    vision: VisionConfig = field(default_factory=VisionConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    face: FaceConfig = field(default_factory=FaceConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    video_branch: BranchConfig = field(default_factory=BranchConfig)
    audio_branch: BranchConfig = field(default_factory=lambda: BranchConfig(positions=8))
    fusion: FusionConfig = field(default_factory=FusionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    lora: LoRAConfig | None = field(default_factory=LoRAConfig)
    quantize: str = "none"

    def __post_init__(self) -> None:
        forms = ("none", "int8", "int4")
        check(self.quantize in forms, f"quantize {self.quantize!r} is not one of {', '.join(forms)}")
        check(
            self.quantize == "none" or self.lora is None,
            "quantised weights hold their adapters: lora must be null",
        )
        if self.fusion.type == "multiscale":
            check(
                len(self.vision.taps) == len(self.audio.taps),
                f"fusion pairs taps: vision has {self.vision.taps}, audio {self.audio.taps}",
            )
        else:
            check(
                self.vision.hidden_size == self.audio.hidden_size,
                f"fusion type {self.fusion.type} needs encoders of one width, "
                f"got {self.vision.hidden_size} and {self.audio.hidden_size}",
            )

    @staticmethod
    def preset(name: str) -> "NanoEmoXConfig":
        """The configuration "nano-emox-2.2b" or "demo". Raises UsageError for another name."""
        if name not in PRESETS:
            raise UsageError(f"preset {name!r} does not exist: use {' or '.join(PRESETS)}")
        return PRESETS[name]

    def to_dict(self) -> dict[str, Any]:
        """The configuration as nested dicts; tuples stay tuples."""
        return dataclasses.asdict(self)

    def to_json(self, path: str | Path) -> None:
        """Write the configuration to a file, in the form that `from_json` reads."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "NanoEmoXConfig":
        """A configuration from nested dicts; what is left out has its default. Raises UsageError."""
        return build(NanoEmoXConfig, values, "")

    @staticmethod
    def from_json(path: str | Path) -> "NanoEmoXConfig":
        """A configuration from a file. Raises CheckpointError naming the file and the key that is wrong."""
        hint = "`nanoemox convert` writes one"
        try:
            values = json.loads(Path(path).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not a nanoemox configuration ({error}); {hint}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: not a nanoemox configuration (not a JSON object); {hint}")
        try:
            return NanoEmoXConfig.from_dict(values)
        except UsageError as error:
            raise CheckpointError(f"{path}: not a nanoemox configuration ({error}); {hint}") from error


# The same classes and stages with fewer and narrower layers: what `nanoemox run` uses without --model.
_DEMO = NanoEmoXConfig(
    name="demo",
    vision=VisionConfig(
        hidden_size=96, layers=6, heads=4, mlp_size=384, patch_size=32, taps=(2, 3, 4), feature_layer=5
    ),
    audio=AudioConfig(
        hidden_size=96, layers=6, heads=4, mlp_size=384, conv_dim=(64,) * 7, position_kernel=32,
        position_groups=8, taps=(3, 4, 5), feature_layers=(3, 4, 5, 6),
    ),
    face=FaceConfig(
        embed_dim=16, depths=(1, 1, 2, 1), heads=(1, 2, 4, 8), feature_size=64, projector_size=128
    ),
    qformer=QFormerConfig(hidden_size=128, heads=4, mlp_size=512),
    fusion=FusionConfig(hidden_size=96, heads=4),
    language=LanguageConfig(
        vocab_size=1024, hidden_size=192, layers=4, heads=6, kv_heads=2, head_dim=32, mlp_size=576,
        max_positions=4096,
    ),
    lora=LoRAConfig(rank=4, alpha=8),
)  # fmt: skip
PRESETS = {"nano-emox-2.2b": NanoEmoXConfig(), "demo": _DEMO}
