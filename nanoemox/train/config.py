"""The YAML of a training run -> one validated record (docs/training.md section 5)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import LoRAConfig
from ..errors import UsageError
from .config_values import parse_value
from .config_values import to_dict as to_dict
from .stages import P2E, Joint, Stage

SHIPPED = Path(__file__).parent / "configs"


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model that is trained. Training needs `bundle` or `components`; a dry run needs neither.

    Attributes:
        bundle: a bundle folder, or "demo".
        components: folder of the four base models (CLIP, HuBERT, FaceXFormer, Qwen), from which a bundle is
            made.
        preset: sizes that no file holds: adapters and taps, and in a dry run without files everything.
        adapters: the trainable groups start from their official initialisation ("new") or from the values of
            the bundle ("keep").
        lora: sizes of the LoRA adapters of a bundle that has none.
    """

    bundle: str | None = None
    components: str | None = None
    preset: str = "nano-emox-2.2b"
    adapters: str = "new"
    lora: LoRAConfig = field(default_factory=LoRAConfig)


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """A data set on disk (docs/data.md).

    Attributes:
        format: a key of nanoemox.data.FORMATS.
        root: its folder or file, relative to the config's `data` folder.
        split: its part.
        size: number of records in a dry run without the files.
        options: options of the format.
    """

    format: str
    root: str = "."
    split: str = "train"
    size: int = 1000
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run (docs/training.md section 5).

    Attributes:
        name: of the run.
        seed: decides initial adapters, draws and dropout.
        order: p2e, joint or reverse.
        out: folder of the run.
        data: folder that the roots of the data sets start from.
        batch: samples per process and micro-batch, all of one data set.
        accumulate: micro-batches per optimiser step.
        clip_norm: largest gradient norm; None: no clipping, as in the reference.
        precision: float32, bfloat16 (autocast, frozen weights in bfloat16) or auto: bfloat16 on CUDA.
        max_tokens: of prompt and target together; longer samples are replaced.
        max_bad_share: stop if more than this share of the samples had media that could not be read.
        checkpoint_every: steps between checkpoints; the end of a stage always has one.
        keep: number of resumable checkpoints that are kept.
        keep_epochs: also keep the weights of every epoch.
        cache: folder of encoder features; None: encode every time.
        workers: threads that read media ahead of the model.
    """

    name: str = "run"
    seed: int = 42
    order: str = "p2e"
    out: str = "runs"
    data: str = "."
    model: ModelOptions = field(default_factory=ModelOptions)
    datasets: Mapping[str, DatasetOptions]
    stages: Mapping[str, Stage]
    joint: Joint = field(default_factory=Joint)
    device: str = "auto"
    precision: str = "auto"
    batch: int = 3
    accumulate: int = 1
    weight_decay: float = 0.05
    betas: tuple[float, ...] = (0.9, 0.999)
    clip_norm: float | None = None
    max_tokens: int = 1024
    max_bad_share: float = 0.05
    gradient_checkpointing: bool = False
    liger: bool = False
    fsdp: bool = False
    checkpoint_every: int = 500
    keep: int = 2
    keep_epochs: bool = False
    cache: str | None = None
    workers: int = 4

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "checkpoint_every", "keep", "max_tokens", "workers"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        _check_choice("precision", self.precision, "auto", "float32", "bfloat16")
        _check_choice("device", self.device, "auto", "cpu", "cuda")
        _check_choice("model.adapters", self.model.adapters, "new", "keep")
        if not 0 <= self.max_bad_share <= 1:
            raise UsageError(f"max_bad_share {self.max_bad_share} is not in [0, 1]")
        if len(self.betas) != 2:
            raise UsageError(f"betas must be two numbers, got {list(self.betas)}")
        for stage in self.stages.values():
            for source in stage.data:
                if source.set not in self.datasets:
                    known = ", ".join(self.datasets)
                    raise UsageError(f"stage {stage.name}: data set {source.set!r} is not one of {known}")
        missing = [name for name in P2E if name not in self.stages]
        if missing:
            raise UsageError(f"stages: {missing[0]!r} is missing; a curriculum has {', '.join(P2E)}")


def _check_choice(name: str, value: str, *choices: str) -> None:
    if value not in choices:
        raise UsageError(f"{name} {value!r} does not exist: use {', '.join(choices)}")


def read_config(path: str | Path, **changes: Any) -> TrainConfig:
    """Read a config.

    Args:
        path: a YAML file, or the name of a shipped config ("paper", "demo").
        changes: replace top-level keys, unless they are None.

    Raises:
        UsageError: the file does not exist, or a key or line is wrong; the message names it.
    """
    file = _find(path)
    try:
        import yaml
    except ImportError as error:
        raise UsageError("training needs an extra: in the checkout, pip install '.[train]'") from error
    try:
        values = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise UsageError(f"{file}{where}: not valid YAML ({problem})") from error
    if not isinstance(values, dict):
        raise UsageError(f"{file}: must be a mapping of keys")
    changed = {name: value for name, value in changes.items() if value is not None}
    try:
        return config_from(values | changed)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error


def _find(path: str | Path) -> Path:
    file, shipped = Path(path), SHIPPED / f"{path}.yaml"
    if file.is_file():
        return file
    if shipped.is_file():
        return shipped
    names = ", ".join(sorted(config.stem for config in SHIPPED.glob("*.yaml")))
    raise UsageError(f"{path}: no such file; shipped configs are {names}")


def config_from(values: Mapping[str, Any]) -> TrainConfig:
    """The config of plain values. Raises UsageError for a key that is unknown, missing or of a wrong type."""
    values = dict(values)
    stages = values.get("stages")
    if isinstance(stages, Mapping):
        values["stages"] = {str(name): _named_stage(str(name), stage) for name, stage in stages.items()}
    return parse_value(TrainConfig, values, "")


def _named_stage(name: str, stage: Any) -> Any:
    """The values of a stage with its key as its name."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"stages.{name}: a stage's name is a folder's: letters, digits, '-', '_' and '.'")
    if not isinstance(stage, Mapping):
        return stage
    if stage.get("name", name) != name:
        raise UsageError(
            f"stages.{name}.name is {stage['name']!r}, must be left out: a stage's name is its key"
        )
    return {**stage, "name": name}
