"""Sizes and constants of each part. The defaults are the published model (docs/architecture.md section 1)."""

import dataclasses
import math
from dataclasses import dataclass

from ..errors import UsageError
from .constants import FRAME_SIZE


def check(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


class Sizes:
    """Base of the configurations: checks that every number is within its range. Raises UsageError."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            numbers = value if isinstance(value, tuple) else (value,)
            check(len(numbers) > 0, f"{item.name} is empty")
            for number in numbers:
                if item.name == "dropout":
                    check(0 <= number < 1, f"dropout {value} is out of range")
                elif isinstance(number, int) and not isinstance(number, bool):
                    is_layer_number = "taps" in item.name or "feature_layer" in item.name
                    minimum = 0 if is_layer_number else 1
                    check(number >= minimum, f"{item.name} {value} must be at least {minimum}")
                elif isinstance(number, float):
                    check(0 < number < math.inf, f"{item.name} {value} is out of range")


def _check_heads(heads: int, width: int, part: str) -> None:
    check(width % heads == 0, f"{part}: a width of {width} is not divisible by {heads} heads")


@dataclass(frozen=True, kw_only=True)
class VisionConfig(Sizes):
    """CLIP vision tower (docs/architecture.md section 2). Hidden state 0 is the output of the embedding."""

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
        _check_heads(self.heads, self.hidden_size, "vision")
        check(len(self.mean) == len(self.std) == 3, "vision: mean and std have one number a colour")
        check(
            max(*self.taps, self.feature_layer) <= self.layers,
            f"vision: taps {self.taps} and feature layer {self.feature_layer} reach past the "
            f"{self.layers} layers",
        )


@dataclass(frozen=True, kw_only=True)
class AudioConfig(Sizes):
    """HuBERT (docs/architecture.md section 3)."""

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
        _check_heads(self.heads, self.hidden_size, "audio")
        _check_heads(self.position_groups, self.hidden_size, "audio: position_groups")
        check(
            max(*self.taps, *self.feature_layers) <= self.layers,
            f"audio: taps {self.taps} and feature layers {self.feature_layers} reach past the "
            f"{self.layers} layers",
        )
        check(
            self.statistics in ("sample", "batch"),
            f"audio: statistics {self.statistics!r} is not sample or batch",
        )


@dataclass(frozen=True, kw_only=True)
class FaceConfig(Sizes):
    """FaceXFormer's Swin backbone, pyramid head and temporal queries (docs/architecture.md section 8)."""

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
    # Officially raw 0-255 values; FaceXFormer itself was trained on ImageNet-normalised crops
    # (docs/architecture.md section 19).
    imagenet_normalize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_heads(self.query_heads, self.feature_size, "face")
        check(
            len(self.depths) == len(self.heads) == 4,
            "face: depths and heads have one number for each of four stages",
        )
        for stage, heads in enumerate(self.heads):
            _check_heads(heads, self.embed_dim * 2**stage, f"face: stage {stage}")


@dataclass(frozen=True, kw_only=True)
class QFormerConfig(Sizes):
    """BERT-base sized query transformer (docs/architecture.md section 6)."""

    hidden_size: int = 768
    layers: int = 2
    heads: int = 12
    mlp_size: int = 3072
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_heads(self.heads, self.hidden_size, "qformer")


BRANCH_TYPES = ("qformer", "mean", "attention")
FUSION_TYPES = ("multiscale", "attention", "qformer", "densemoe")


@dataclass(frozen=True, kw_only=True)
class BranchConfig(Sizes):
    """From encoder features to language-model tokens (docs/architecture.md sections 4, 5 and 18)."""

    type: str = "qformer"
    tokens: int = 32
    positions: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.type in BRANCH_TYPES, f"branch type {self.type!r} is not one of {', '.join(BRANCH_TYPES)}")


@dataclass(frozen=True, kw_only=True)
class FusionConfig(Sizes):
    """Multi-scale cross-modal fusion or one of its variants (docs/architecture.md sections 7 and 18)."""

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
        _check_heads(self.heads, self.hidden_size, "fusion")
        check(self.type in FUSION_TYPES, f"fusion type {self.type!r} is not one of {', '.join(FUSION_TYPES)}")


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(Sizes):
    """Qwen2.5-1.5B, or any qwen2 / llama configuration (docs/architecture.md section 9)."""

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
        _check_heads(self.kv_heads, self.heads, "language")
        check(self.head_dim % 2 == 0, f"language: head_dim {self.head_dim} must be even for rotary positions")
        check(
            self.model_type in ("qwen2", "llama"),
            f"language: model_type {self.model_type!r} is neither qwen2 nor llama",
        )


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(Sizes):
    """Low-rank adapters on every linear of the language model (docs/architecture.md section 9)."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
