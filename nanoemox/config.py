"""Sizes and constants of the model. Defaults are the published model (architecture sections 1 to 9)."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from .errors import CheckpointError, UsageError

# What one clip is turned into (architecture section 13).
FRAMES = 8
FRAME_SIZE = 224  # squashed, the aspect ratio is not kept
WINDOWS = 8
SAMPLE_RATE = 16_000
WINDOW_SAMPLES = 2 * SAMPLE_RATE


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


class _Sizes:
    """Every number of a configuration within its range, whatever file it came from. Raises UsageError."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            numbers = value if isinstance(value, tuple) else (value,)
            _check(len(numbers) > 0, f"{item.name} is empty")
            for number in numbers:
                if item.name == "dropout":
                    _check(0 <= number < 1, f"dropout {value} is out of range")
                elif isinstance(number, int) and not isinstance(number, bool):
                    least = 0 if "taps" in item.name or "feature_layer" in item.name else 1
                    _check(number >= least, f"{item.name} {value} must be at least {least}")
                elif isinstance(number, float):
                    _check(0 < number < math.inf, f"{item.name} {value} is out of range")


def _divides(heads: int, width: int, where: str) -> None:
    _check(width % heads == 0, f"{where}: a width of {width} cannot be shared by {heads} heads")


@dataclass(frozen=True, kw_only=True)
class VisionConfig(_Sizes):
    """CLIP vision tower (architecture section 2). Entry 0 of the hidden states is the embedding output."""

    hidden_size: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_size: int = 4096
    patch_size: int = 14
    image_size: int = FRAME_SIZE
    activation: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    taps: tuple[int, ...] = (12, 16, 22)
    feature_layer: int = 23
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        super().__post_init__()
        _divides(self.heads, self.hidden_size, "vision")
        _check(len(self.mean) == len(self.std) == 3, "vision: mean and std have one number a colour")
        _check(
            max(*self.taps, self.feature_layer) <= self.layers,
            f"vision: taps {self.taps} and feature layer {self.feature_layer} reach past the {self.layers} layers",
        )


@dataclass(frozen=True, kw_only=True)
class AudioConfig(_Sizes):
    """HuBERT (architecture section 3)."""

    hidden_size: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_size: int = 4096
    activation: str = "gelu"
    layer_norm_eps: float = 1e-5
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = True
    conv_norm: str = "layer"  # feat_extract_norm: "layer" or "group"
    conv_activation: str = "gelu"
    projection_layer_norm: bool = True
    stable_layer_norm: bool = True
    position_kernel: int = 128
    position_groups: int = 16
    position_batch_norm: bool = False
    taps: tuple[int, ...] = (16, 18, 22)
    feature_layers: tuple[int, ...] = (21, 22, 23, 24)
    normalize: bool = True
    # "sample": mean and variance over the windows of one clip. "batch": over the whole batch, as officially.
    statistics: str = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        _divides(self.heads, self.hidden_size, "audio")
        _divides(self.position_groups, self.hidden_size, "audio: position_groups")
        _check(
            max(*self.taps, *self.feature_layers) <= self.layers,
            f"audio: taps {self.taps} and feature layers {self.feature_layers} reach past the {self.layers} layers",
        )
        _check(
            self.statistics in ("sample", "batch"),
            f"audio: statistics {self.statistics!r} is not sample or batch",
        )


@dataclass(frozen=True, kw_only=True)
class FaceConfig(_Sizes):
    """FaceXFormer's Swin backbone, pyramid head and the temporal query attention (architecture section 8)."""

    embed_dim: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 7
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-5
    feature_size: int = 256
    queries: int = 4
    query_heads: int = 4
    projector_size: int = 768
    dropout: float = 0.1
    # Officially raw 0-255 values; FaceXFormer itself was trained on ImageNet-normalised crops (section 19, A4).
    imagenet_normalize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _divides(self.query_heads, self.feature_size, "face")
        _check(
            len(self.depths) == len(self.heads) == 4,
            "face: depths and heads have one number for each of four stages",
        )
        for stage, heads in enumerate(self.heads):
            _divides(heads, self.embed_dim * 2**stage, f"face: stage {stage}")


@dataclass(frozen=True, kw_only=True)
class QFormerConfig(_Sizes):
    """BERT-base sized query transformer (architecture section 6)."""

    hidden_size: int = 768
    layers: int = 2
    heads: int = 12
    mlp_size: int = 3072
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _divides(self.heads, self.hidden_size, "qformer")


BRANCH_TYPES = ("qformer", "mean", "attention")
FUSION_TYPES = ("multiscale", "attention", "qformer", "densemoe")


@dataclass(frozen=True, kw_only=True)
class BranchConfig(_Sizes):
    """From encoder features to language-model tokens (architecture sections 4, 5, 18)."""

    type: str = "qformer"
    tokens: int = 32
    positions: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(
            self.type in BRANCH_TYPES, f"branch type {self.type!r} is not one of {', '.join(BRANCH_TYPES)}"
        )


@dataclass(frozen=True, kw_only=True)
class FusionConfig(_Sizes):
    """Multi-scale cross-modal fusion (architecture section 7) or one of its variants (section 18)."""

    type: str = "multiscale"
    hidden_size: int = 512
    heads: int = 8
    tokens: int = 1
    dropout: float = 0.1
    positions: int = 264  # variant qformer
    router_size: int = 128  # variant densemoe
    experts: int = 3  # variant densemoe; multiscale has one expert a tap

    def __post_init__(self) -> None:
        super().__post_init__()
        _divides(self.heads, self.hidden_size, "fusion")
        _check(
            self.type in FUSION_TYPES, f"fusion type {self.type!r} is not one of {', '.join(FUSION_TYPES)}"
        )


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(_Sizes):
    """Qwen2.5-1.5B, or any qwen2 / llama configuration (architecture section 9)."""

    model_type: str = "qwen2"
    vocab_size: int = 151_936
    hidden_size: int = 1536
    layers: int = 28
    heads: int = 12
    kv_heads: int = 2
    head_dim: int = 128
    mlp_size: int = 8960
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    max_positions: int = 32_768
    tied_embeddings: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _divides(self.kv_heads, self.heads, "language")
        _check(
            self.head_dim % 2 == 0, f"language: head_dim {self.head_dim} must be even for rotary positions"
        )
        _check(
            self.model_type in ("qwen2", "llama"),
            f"language: model_type {self.model_type!r} is neither qwen2 nor llama",
        )


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(_Sizes):
    """Low-rank adapters on every linear of the language model (architecture section 9)."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class NanoEmoXConfig:
    """The whole model. `lora` is None once the adapters are merged; `quantize` is none, int8 or int4 (quantized.py)."""

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
        _check(self.quantize in forms, f"quantize {self.quantize!r} is not one of {', '.join(forms)}")
        _check(
            self.quantize == "none" or self.lora is None,
            "quantised weights hold their adapters: lora must be null",
        )
        if self.fusion.type == "multiscale":
            _check(
                len(self.vision.taps) == len(self.audio.taps),
                f"fusion pairs taps: vision has {self.vision.taps}, audio {self.audio.taps}",
            )
        else:
            _check(
                self.vision.hidden_size == self.audio.hidden_size,
                f"fusion type {self.fusion.type} needs encoders of one width, "
                f"got {self.vision.hidden_size} and {self.audio.hidden_size}",
            )

    @staticmethod
    def preset(name: str) -> "NanoEmoXConfig":
        """One of the named configurations: `nano-emox-2.2b` or `demo`. Raises UsageError for another name."""
        if name not in PRESETS:
            raise UsageError(f"preset {name!r} does not exist: use {' or '.join(PRESETS)}")
        return PRESETS[name]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "NanoEmoXConfig":
        return _build(NanoEmoXConfig, values, "")

    @staticmethod
    def from_json(path: str | Path) -> "NanoEmoXConfig":
        """Raises CheckpointError naming the file and the key that is unknown or of the wrong kind."""
        try:
            values = json.loads(Path(path).read_text())
            if not isinstance(values, dict):
                raise UsageError("not a JSON object")
            return NanoEmoXConfig.from_dict(values)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{path}: not a nanoemox configuration ({error}); `nanoemox convert` writes one"
            ) from error


def _is(value: Any, kind: type) -> bool:
    accepted = (int, float) if kind is float else kind
    return isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))


def _build(kind: type, values: dict[str, Any], where: str) -> Any:
    """A dataclass from a dict, nested; an unknown key is an error that lists the known ones."""
    hints = get_type_hints(kind)
    if unknown := sorted(set(values) - set(hints)):
        raise UsageError(f"unknown key {where}{unknown[0]}; known are {', '.join(sorted(hints))}")
    built: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints[name]
        nested: Any = next((h for h in (hint, *get_args(hint)) if dataclasses.is_dataclass(h)), None)
        if nested is not None and isinstance(value, dict):
            value = _build(nested, value, f"{where}{name}.")
        elif nested is not None and not (value is None and type(None) in get_args(hint)):
            raise UsageError(f"{where}{name} must be an object, got {value!r}")
        elif get_origin(hint) is tuple:
            kind_of = get_args(hint)[0]
            if not isinstance(value, list | tuple) or not all(_is(v, kind_of) for v in value):
                raise UsageError(f"{where}{name} must be a list of {kind_of.__name__}, got {value!r}")
            value = tuple(value)
        elif nested is None and not _is(value, hint):
            raise UsageError(f"{where}{name} must be {hint.__name__}, got {value!r}")
        built[name] = value
    return kind(**built)


# The same classes and stages, fewer and narrower layers: what `nanoemox run` uses on a fresh machine.
_DEMO = NanoEmoXConfig(
    name="demo",
    vision=VisionConfig(
        hidden_size=96, layers=6, heads=4, mlp_size=384, patch_size=32, taps=(2, 3, 4), feature_layer=5
    ),
    audio=AudioConfig(
        hidden_size=96, layers=6, heads=4, mlp_size=384, conv_dim=(64,) * 7, position_kernel=32, position_groups=8,
        taps=(3, 4, 5), feature_layers=(3, 4, 5, 6),
    ),
    face=FaceConfig(embed_dim=16, depths=(1, 1, 2, 1), heads=(1, 2, 4, 8), feature_size=64, projector_size=128),
    qformer=QFormerConfig(hidden_size=128, heads=4, mlp_size=512),
    fusion=FusionConfig(hidden_size=96, heads=4),
    language=LanguageConfig(
        vocab_size=1024, hidden_size=192, layers=4, heads=6, kv_heads=2, head_dim=32, mlp_size=576, max_positions=4096
    ),
    lora=LoRAConfig(rank=4, alpha=8),
)  # fmt: skip
PRESETS = {"nano-emox-2.2b": NanoEmoXConfig(), "demo": _DEMO}
