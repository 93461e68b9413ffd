"""What a run would do, without media and without weights: shares that are drawn, parameters, memory and time.

Memory and time are estimates for one GPU of 24 GB in bfloat16, from the sizes alone (see `estimate`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..build import build_empty
from ..config import FRAMES, NanoEmoXConfig
from ..model import NanoEmoX
from ..tasks import TASKS
from .config import TrainConfig
from .initial_model import sizes, trainable_names
from .run import the_plan
from .sampler import Mixture, Records, Sampler, realised
from .stages import Stage

GIB = 2**30
CARD = 24e9  # bytes
FLOPS = 70e12  # a second: what such a card's 165 peak TFLOP/s (dense bfloat16) leave of small batches
TEXT = (120, 60)  # tokens of the words of a prompt, and of an answer, where no sample tells
_TASKS = {
    "description": "eri", "ovlabel": "ov-mer", "intent_recognition": "mir", "emotion_recognition": "mer",
    "empathic_response_with_coe": "erg", "onehot_w_candidates": "mer", "onehot_wo_candidates": "mer",
    "valence": "msa", "sentiment": "msa", "comprehensive_emotion_reasoning": "eri",
}  # fmt: skip
_ONE_HOT, _VALENCE = ("onehot_w_candidates", "onehot_wo_candidates"), ("valence", "sentiment")
_KINDS = {
    "mercaptionplus": ("description", "ovlabel"), "ovmerd": ("description", "ovlabel"),
    "merr_fine": ("description", "ovlabel"), "avamerg": ("empathic_response_with_coe", "emotion_recognition"),
    "mintrec": ("intent_recognition",), "mintrec2": ("intent_recognition",), "manifest": tuple(TASKS),
    "ovmerd_plus": ("ovlabel",), "emer": ("comprehensive_emotion_reasoning",),
    **dict.fromkeys(("mer2023", "mer2024", "meld", "iemocap"), _ONE_HOT),
    **dict.fromkeys(("cmumosi", "cmumosei", "sims", "simsv2"), _VALENCE),
}  # fmt: skip


@dataclass(frozen=True)
class Stand:
    """Stands for a data set whose files are not there: its declared size and its format's answer types."""

    format: str
    size: int

    @property
    def kinds(self) -> tuple[str, ...]:
        return _KINDS.get(self.format, ("emotion_recognition",))

    def __len__(self) -> int:
        return self.size

    def task_of(self, kind: str) -> str:
        return _TASKS.get(kind, kind)


def dry_run(
    config: TrainConfig, datasets: Mapping[str, Records], *, draws: int = 20_000, stage: str | None = None
) -> list[dict[str, Any]]:
    """One record a stage of the config's order: its steps, trainable parameters, percents by data set and by task
    (intended and drawn), and estimates of memory (bytes) and time (seconds)."""
    model_config = sizes(config.model)
    model = build_empty(model_config, "model")
    out = []
    for one in the_plan(config, datasets).stages:
        if stage in (None, one.name):
            mixture = Mixture(one, datasets, config.seed)
            sampler = Sampler(mixture, config.batch, f"{config.seed}|{one.name}")
            for _ in range(draws):
                sampler.draw()
            record: dict[str, Any] = {
                "stage": one.name,
                "steps": one.total,
                "trainable": trainable(model, one),
            }
            record |= {
                "draws": draws,
                "intended": realised(_counts(mixture)),
                "drawn": realised(sampler.counts),
            }
            out.append(record | estimate(model, model_config, config, one))
    return out


def _counts(mixture: Mixture) -> dict[tuple[str, str], Any]:
    return dict(mixture.cells())


def trainable(model: NanoEmoX, stage: Stage) -> int:
    """Parameters that the stage trains."""
    return sum(model.get_parameter(key).numel() for key in trainable_names(model, stage.train).values())


def estimate(model: NanoEmoX, sizes: NanoEmoXConfig, config: TrainConfig, stage: Stage) -> dict[str, Any]:
    """Bytes and seconds of a stage on one GPU.

    Weights: frozen 2 bytes, trained 16 (value, gradient, two moments, fp32). Activations: what autocast keeps of every
    language-model layer for its backward pass, of the label rows' logits, and the largest transient of an encoder.
    Time: multiply-adds of encoders (once a clip with a cache that is warm: none), forward and backward.
    """
    total, trained = sum(p.numel() for p in model.parameters()), trainable(model, stage)
    lm = sizes.language
    counts = model.token_counts
    tokens = sum(counts.values()) - counts["image"] + sum(TEXT) + 2
    rows = config.batch * tokens
    q, kv = lm.heads * lm.head_dim, lm.kv_heads * lm.head_dim
    # bf16 copies of each linear's input for LoRA and its base, norms in fp32, gate, up and their product.
    layer = rows * (2 * (6 * lm.hidden_size + 3 * q + 2 * kv + 6 * lm.mlp_size) + 4 * 4 * lm.hidden_size)
    kept = layer * (1 if config.gradient_checkpointing else lm.layers)
    kept += rows * 4 * lm.hidden_size * (lm.layers if config.gradient_checkpointing else 0)
    logits = config.batch * TEXT[1] * lm.vocab_size * (2 + 4 + 4)
    adapters = 12 * config.batch * 32 * sizes.qformer.hidden_size * 40
    audio = (
        8 * 32_000 // 5 * max(sizes.audio.conv_dim) * 2 * 3
    )  # the first convolution, its norm and activation
    memory = {
        "frozen": 2 * (total - trained),
        "trained": 16 * trained,
        "activations": kept + logits + adapters,
        "encoders": audio,
    }
    memory["total"] = round(1.1 * sum(memory.values()))  # fragments, workspaces, the CUDA context
    encode = 2 * FRAMES * _per_frame(model, sizes)
    language = sum(p.numel() for p in model.language.parameters())
    update = 2 * rows * language * (3 if config.gradient_checkpointing else 2) + 6 * config.batch * trained
    updates = stage.total * config.accumulate
    seconds = {
        "step": config.accumulate * (config.batch * encode + update) / FLOPS,
        "step_with_cache": config.accumulate * update / FLOPS,
    }
    seconds["total"] = seconds["step"] * updates / config.accumulate
    seconds["total_with_cache"] = seconds["step_with_cache"] * updates / config.accumulate
    return {"memory": memory, "fits": memory["total"] <= CARD, "seconds": seconds}


def _per_frame(model: NanoEmoX, sizes: NanoEmoXConfig) -> float:
    """Multiply-adds of the encoders for one frame and one window."""

    def linear(module: Any) -> int:
        return sum(p.numel() for p in module.parameters() if p.ndim >= 2)

    patches = (sizes.vision.image_size // sizes.vision.patch_size) ** 2 + 1
    cells = [(sizes.vision.image_size // 4 // 2**stage) ** 2 for stage in range(4)]
    swin = sum(
        12 * (sizes.face.embed_dim * 2**s) ** 2 * depth * cells[s] for s, depth in enumerate(sizes.face.depths)
    )  # fmt: skip
    return linear(model.vision) * patches + linear(model.audio) * 99 + swin


def describe(records: list[dict[str, Any]], config: TrainConfig) -> str:
    """The records for people."""
    lines = []
    for one in records:
        memory, seconds = one["memory"], one["seconds"]
        lines.append(f"stage {one['stage']}: {one['steps']} steps, {one['trainable']:,} trainable parameters")
        for level in ("dataset", "task"):
            for name, share in one["intended"][level].items():
                drawn = one["drawn"][level].get(name, 0.0)
                lines.append(f"  {level:<8}{name:<24}{share:7.2f} % intended{drawn:9.2f} % drawn")
        parts = ", ".join(f"{name} {value / GIB:.2f}" for name, value in memory.items() if name != "total")
        fits = "fits" if one["fits"] else "does not fit; try gradient_checkpointing or a smaller batch"
        lines.append(f"  memory  about {memory['total'] / GIB:.1f} GiB ({parts}); one 24 GB GPU: {fits}")
        cached = f"{seconds['step_with_cache']:.3f} s with features cached ({seconds['total_with_cache'] / 3600:.1f} h)"
        lines.append(
            f"  time    about {seconds['step']:.3f} s a step ({seconds['total'] / 3600:.1f} h), {cached}"
        )
    drawn = records[0]["draws"] if records else 0
    lines.append(f"{drawn} batches of {config.batch} drawn per stage, seed {config.seed}; no media was read")
    return "\n".join(lines)


def stands(config: TrainConfig) -> dict[str, Records]:
    """A stand-in for every data set of the config."""
    return {name: Stand(options.format, options.size) for name, options in config.datasets.items()}
