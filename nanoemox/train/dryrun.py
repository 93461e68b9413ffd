"""Shares, parameters, memory and time of a run, without media and weights (docs/training.md section 9).

Memory and time are estimates for one GPU of 24 GB in bfloat16, from the sizes alone (see `estimate`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..build import build_empty
from ..config import FRAMES, NanoEmoXConfig
from ..model import NanoEmoX, reference_language
from ..tasks import TASKS
from .config import TrainConfig
from .initial_model import sizes, trainable_names
from .run import the_plan
from .sampler import Mixture, Records, Sampler, realised
from .stages import Stage

GIB = 2**30
CARD = 24e9  # bytes
FLOPS = 70e12  # per second: what small batches reach of the 165 peak TFLOP/s (dense bfloat16) of such a card
PROMPT_TOKENS, ANSWER_TOKENS = 120, 60  # of the words of a prompt, and of an answer; assumed
# Answer type -> task (docs/tasks.md section 3.8).
_TASKS = {
    "description": "eri",
    "ovlabel": "ov-mer",
    "intent_recognition": "mir",
    "emotion_recognition": "mer",
    "empathic_response_with_coe": "erg",
    "onehot_w_candidates": "mer",
    "onehot_wo_candidates": "mer",
    "valence": "msa",
    "sentiment": "msa",
    "comprehensive_emotion_reasoning": "eri",
}
# Format -> answer types.
_CAPTION_KINDS = ("description", "ovlabel")
_ONEHOT_KINDS = ("onehot_w_candidates", "onehot_wo_candidates")
_KINDS = {
    "mercaptionplus": _CAPTION_KINDS,
    "ovmerd": _CAPTION_KINDS,
    "merr_fine": _CAPTION_KINDS,
    "avamerg": ("empathic_response_with_coe", "emotion_recognition"),
    "mintrec": ("intent_recognition",),
    "mintrec2": ("intent_recognition",),
    "manifest": tuple(TASKS),
    "ovmerd_plus": ("ovlabel",),
    "emer": ("comprehensive_emotion_reasoning",),
    **dict.fromkeys(("mer2023", "mer2024", "meld", "iemocap"), _ONEHOT_KINDS),
    **dict.fromkeys(("cmumosi", "cmumosei", "sims", "simsv2"), ("valence", "sentiment")),
}


@dataclass(frozen=True)
class Stand:
    """Stands for a data set whose files are absent: its declared size, and the answer types of its format."""

    format: str
    size: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """The answer types."""
        return _KINDS.get(self.format, ("emotion_recognition",))

    def __len__(self) -> int:
        return self.size

    def task_of(self, kind: str) -> str:
        """The task of an answer type; of a manifest, the type itself."""
        return _TASKS.get(kind, kind)


def stands(config: TrainConfig) -> dict[str, Records]:
    """A stand-in for every data set of the config."""
    return {name: Stand(options.format, options.size) for name, options in config.datasets.items()}


def dry_run(
    config: TrainConfig, datasets: Mapping[str, Records], *, draws: int = 20_000, stage: str | None = None
) -> list[dict[str, Any]]:
    """Draw the mixture of every stage, and estimate memory and time.

    Args:
        config: the run.
        datasets: name -> data set or stand-in.
        draws: batches that are drawn per stage.
        stage: only this stage.

    Returns:
        A record per stage of the order: its steps, trainable parameters, percents by data set and by task
        (intended and drawn), and what `estimate` returns.
    """
    model_config = sizes(config.model)
    model = build_empty(model_config, "model")
    records = []
    for candidate in the_plan(config, datasets).stages:
        if stage not in (None, candidate.name):
            continue
        mixture = Mixture(candidate, datasets, config.seed)
        sampler = Sampler(mixture, config.batch, f"{config.seed}|{candidate.name}")
        for _ in range(draws):
            sampler.draw()
        record = {
            "stage": candidate.name,
            "steps": candidate.total,
            "trainable": trainable(model, candidate),
            "draws": draws,
            "intended": realised(mixture.cells()),
            "drawn": realised(sampler.counts),
        }
        records.append(record | estimate(model, model_config, config, candidate))
    return records


def trainable(model: NanoEmoX, stage: Stage) -> int:
    """Number of parameters that the stage trains."""
    return sum(model.get_parameter(key).numel() for key in trainable_names(model, stage.train).values())


def estimate(model: NanoEmoX, sizes: NanoEmoXConfig, config: TrainConfig, stage: Stage) -> dict[str, Any]:
    """Memory and time of a stage on one GPU.

    Args:
        model: the model, without values.
        sizes: its configuration.
        config, stage: the run and the stage.

    Returns:
        memory: part -> bytes, with the total; fits: whether that fits into CARD bytes; seconds: of a step and
            of
        the stage, with and without cached features.
    """
    rows = config.batch * _tokens_per_sample(model)
    memory = _memory(model, sizes, config, stage, rows)
    seconds = _seconds(model, sizes, config, stage, rows)
    return {"memory": memory, "fits": memory["total"] <= CARD, "seconds": seconds}


def _tokens_per_sample(model: NanoEmoX) -> int:
    counts = model.token_counts
    return sum(counts.values()) - counts["image"] + PROMPT_TOKENS + ANSWER_TOKENS + 2


def _memory(
    model: NanoEmoX, sizes: NanoEmoXConfig, config: TrainConfig, stage: Stage, rows: int
) -> dict[str, Any]:
    """Bytes by part.

    Frozen weights take 2 bytes, trained ones 16 (value, gradient and two moments in fp32). Activations are
    what autocast keeps of every layer of the language model for the backward pass, the logits of the answer's
    tokens, and those of the adapters; encoders have their largest transient.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = trainable(model, stage)
    lm = sizes.language
    q, kv = lm.heads * lm.head_dim, lm.kv_heads * lm.head_dim
    # bf16 copies of the inputs of each linear layer for LoRA and its base, norms in fp32, gate, up and
    # product.
    layer = rows * (2 * (6 * lm.hidden_size + 3 * q + 2 * kv + 6 * lm.mlp_size) + 4 * 4 * lm.hidden_size)
    layers = layer * (1 if config.gradient_checkpointing else lm.layers)
    layers += rows * 4 * lm.hidden_size * (lm.layers if config.gradient_checkpointing else 0)
    logits = config.batch * ANSWER_TOKENS * lm.vocab_size * (2 + 4 + 4)
    adapters = 12 * config.batch * 32 * sizes.qformer.hidden_size * 40
    first_convolution = 8 * 32_000 // 5 * max(sizes.audio.conv_dim) * 2 * 3  # with its norm and activation
    memory = {
        "frozen": 2 * (total - trained),
        "trained": 16 * trained,
        "activations": layers + logits + adapters,
        "encoders": first_convolution,
    }
    memory["total"] = round(1.1 * sum(memory.values()))  # fragmentation, workspaces, the CUDA context
    return memory


def _seconds(
    model: NanoEmoX, sizes: NanoEmoXConfig, config: TrainConfig, stage: Stage, rows: int
) -> dict[str, float]:
    """Seconds of the multiply-adds of encoders (none if features are cached), forward and backward pass."""
    encode = 2 * FRAMES * _multiply_adds_per_frame(model, sizes)
    language = sum(parameter.numel() for parameter in reference_language(model).parameters())
    passes = 3 if config.gradient_checkpointing else 2
    update = 2 * rows * language * passes + 6 * config.batch * trainable(model, stage)
    updates = stage.total * config.accumulate
    seconds = {
        "step": config.accumulate * (config.batch * encode + update) / FLOPS,
        "step_with_cache": config.accumulate * update / FLOPS,
    }
    seconds["total"] = seconds["step"] * updates / config.accumulate
    seconds["total_with_cache"] = seconds["step_with_cache"] * updates / config.accumulate
    return seconds


def _multiply_adds_per_frame(model: NanoEmoX, sizes: NanoEmoXConfig) -> float:
    """Multiply-adds of the encoders for one frame and one window."""

    def weights(module: object) -> int:
        assert isinstance(module, nn.Module)
        return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim >= 2)

    patches = (sizes.vision.image_size // sizes.vision.patch_size) ** 2 + 1
    cells = [(sizes.vision.image_size // 4 // 2**stage) ** 2 for stage in range(4)]
    swin = sum(
        12 * (sizes.face.embed_dim * 2**stage) ** 2 * depth * cells[stage]
        for stage, depth in enumerate(sizes.face.depths)
    )
    return weights(model.vision) * patches + weights(model.audio) * 99 + swin


def describe(records: list[dict[str, Any]], config: TrainConfig) -> str:
    """The records as text for the terminal."""
    lines = []
    for record in records:
        lines.append(
            f"stage {record['stage']}: {record['steps']} steps, {record['trainable']:,} trainable parameters"
        )
        for level in ("dataset", "task"):
            for name, share in record["intended"][level].items():
                drawn = record["drawn"][level].get(name, 0.0)
                lines.append(f"  {level:<8}{name:<24}{share:7.2f} % intended{drawn:9.2f} % drawn")
        lines.append(_describe_memory(record))
        lines.append(_describe_time(record["seconds"]))
    draws = records[0]["draws"] if records else 0
    lines.append(f"{draws} batches of {config.batch} drawn per stage, seed {config.seed}; no media was read")
    return "\n".join(lines)


def _describe_memory(record: dict[str, Any]) -> str:
    memory = record["memory"]
    parts = ", ".join(f"{name} {value / GIB:.2f}" for name, value in memory.items() if name != "total")
    fits = "fits" if record["fits"] else "does not fit; try gradient_checkpointing or a smaller batch"
    return f"  memory  about {memory['total'] / GIB:.1f} GiB ({parts}); one 24 GB GPU: {fits}"


def _describe_time(seconds: dict[str, float]) -> str:
    step, total = seconds["step"], seconds["total"] / 3600
    cached_step, cached_total = seconds["step_with_cache"], seconds["total_with_cache"] / 3600
    cached = f"{cached_step:.3f} s with features cached ({cached_total:.1f} h)"
    return f"  time    about {step:.3f} s a step ({total:.1f} h), {cached}"
