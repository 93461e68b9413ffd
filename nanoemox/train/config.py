"""The YAML of a training run -> one validated record. An unknown key is an error that lists the known ones."""

import dataclasses
import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..config import LoRAConfig
from ..errors import UsageError
from .stages import P2E, Joint, Source, Stage

SHIPPED = Path(__file__).parent / "configs"


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What is trained. One of `bundle` and `components` must exist to train; `preset` is enough for a dry run.

    Attributes:
        bundle: a bundle folder, or "demo".
        components: folder of the four base models (CLIP, HuBERT, FaceXFormer, Qwen); a bundle is made of them once.
        preset: sizes of what is in no file: adapters, taps; and of everything in a dry run without files.
        adapters: "new" starts the trainable groups from their official initialisation, "keep" from the bundle's values.
        lora: sizes of the adapters of a bundle that has none.
    """

    bundle: str | None = None
    components: str | None = None
    preset: str = "nano-emox-2.2b"
    adapters: str = "new"
    lora: LoRAConfig = field(default_factory=LoRAConfig)


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """A data set on disk. `root` is relative to the config's `data` folder; `size` serves a dry run without the files;
    `options` go to the adapter as they are."""

    format: str
    root: str = "."
    split: str = "train"
    size: int = 1000
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run.

    Attributes:
        batch: samples per process and micro-batch; all of one data set.
        accumulate: micro-batches per optimiser step.
        clip_norm: largest gradient norm, None: no clipping (as the reference).
        precision: float32, bfloat16 (autocast; frozen weights are held in it) or auto: bfloat16 on CUDA.
        max_tokens: prompt and answer together; longer samples are replaced.
        max_bad_share: stop when more than this share of the samples had media that could not be read.
        checkpoint_every: steps; the end of a stage always has one.
        keep: resumable checkpoints kept; keep_epochs also keeps the weights of every epoch.
        cache: folder of encoder features, None: encode every time.
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
        for name, known in (
            ("precision", ("auto", "float32", "bfloat16")),
            ("device", ("auto", "cpu", "cuda")),
        ):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} {getattr(self, name)!r} does not exist: use {', '.join(known)}")
        if self.model.adapters not in ("new", "keep"):
            raise UsageError(f"model.adapters {self.model.adapters!r} does not exist: use new, keep")
        if not 0 <= self.max_bad_share <= 1:
            raise UsageError(f"max_bad_share {self.max_bad_share} is not in [0, 1]")
        if len(self.betas) != 2:
            raise UsageError(f"betas must be two numbers, got {list(self.betas)}")
        for stage in self.stages.values():
            for source in stage.data:
                if source.set not in self.datasets:
                    known_sets = ", ".join(self.datasets)
                    raise UsageError(
                        f"stage {stage.name}: data set {source.set!r} is not one of {known_sets}"
                    )
        if absent := [name for name in P2E if name not in self.stages]:
            raise UsageError(f"stages: {absent[0]!r} is missing; a curriculum has {', '.join(P2E)}")


def read_config(path: str | Path, **changes: Any) -> TrainConfig:
    """A YAML file, or the name of a shipped one ("paper", "demo"). `changes` replace top-level keys.

    Raises UsageError naming the file and the key, or the line, that is wrong.
    """
    file = Path(path)
    if not file.is_file() and (SHIPPED / f"{path}.yaml").is_file():
        file = SHIPPED / f"{path}.yaml"
    if not file.is_file():
        shipped = ", ".join(sorted(f.stem for f in SHIPPED.glob("*.yaml")))
        raise UsageError(f"{path}: no such file; shipped configs are {shipped}")
    try:
        import yaml
    except ImportError as error:
        raise UsageError("training needs the extra: pip install 'nanoemox[train]'") from error
    try:
        values = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(
            f"{file}{where}: not valid YAML ({getattr(error, 'problem', None) or error})"
        ) from error
    if not isinstance(values, dict):
        raise UsageError(f"{file}: must be a mapping of keys")
    try:
        return config_from(values | {name: value for name, value in changes.items() if value is not None})
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error


def config_from(values: Mapping[str, Any]) -> TrainConfig:
    """Raises UsageError naming the key that is unknown, missing or of the wrong kind."""
    values = dict(values)
    stages = values.get("stages")
    if isinstance(stages, Mapping):  # a stage's name is its key
        for name, stage in stages.items():
            if not re.fullmatch(r"\w[\w.-]*", str(name)):
                raise UsageError(
                    f"stages.{name}: a stage's name is a folder's: letters, digits, '-', '_' and '.'"
                )
            if isinstance(stage, Mapping) and stage.get("name", str(name)) != str(name):
                raise UsageError(
                    f"stages.{name}.name is {stage['name']!r}, must be left out: a stage's name is its key"
                )
        values["stages"] = {
            str(name): {**stage, "name": str(name)} if isinstance(stage, Mapping) else stage
            for name, stage in stages.items()
        }
    return _value(TrainConfig, values, "")


def to_dict(config: Any) -> Any:
    """Plain JSON values of a configuration record."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {name: to_dict(value) for name, value in config.items()}
    return [to_dict(value) for value in config] if isinstance(config, list | tuple) else config


def _record(kind: type, values: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    if unknown := [str(name) for name in values if name not in hints]:
        raise UsageError(f"unknown key {where}{unknown[0]}; known are {', '.join(sorted(hints))}")
    for item in dataclasses.fields(kind):
        if item.name not in values and item.default is item.default_factory is dataclasses.MISSING:
            raise UsageError(f"{where}{item.name} is missing")
    return kind(**{name: _value(hints[name], value, f"{where}{name}") for name, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (hint,) = (one for one in inner if one is not type(None))
        return _value(hint, value, where)
    if dataclasses.is_dataclass(hint):
        if hint is Source and isinstance(value, str):
            value = {"set": value}
        if not isinstance(value, Mapping):
            raise UsageError(f"{where} must be a mapping, got {value!r}")
        return _record(hint, value, f"{where}." if where else "")  # type: ignore[arg-type]
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise UsageError(f"{where} must be a mapping, got {value!r}")
        return {str(name): _value(inner[1], one, f"{where}.{name}") for name, one in value.items()}
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where} must be a list, got {value!r}")
        return tuple(_value(inner[0], one, f"{where}[{i}]") for i, one in enumerate(value))
    return _scalar(hint, value, where)


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 3e-4 as a string
        try:
            value = float(value)
        except ValueError:
            raise UsageError(f"{where} must be a number, got {value!r}") from None
    accepted: Any = {float: (int, float), int: int, bool: bool, str: str}[kind]
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        raise UsageError(f"{where} must be {kind.__name__}, got {value!r}")
    if kind is float and not math.isfinite(value):
        raise UsageError(f"{where} must be finite, got {value!r}")
    return kind(value)
