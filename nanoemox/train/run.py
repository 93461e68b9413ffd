"""A whole run: the stages of an order one after the other, then a bundle (docs/training.md sections 4 and 7).

OUT/config.json  OUT/STAGE/{log.jsonl, skipped.jsonl, mixture.json, checkpoint-*, curves.png}  OUT/bundle/
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..bundle.folder import CARD
from ..data.record import Dataset
from ..errors import TrainingError, UsageError
from ..model import NanoEmoX, reference_language
from . import checkpoint
from .config import TrainConfig, to_dict
from .examples import Reader
from .features import Features
from .initial_model import build_model, trainable_names
from .learner import use_liger
from .log import write_json
from .loop import Job, StageRun
from .report import draw_curves
from .sampler import Mixture, Records
from .signals import Stop
from .stages import Plan, Stage, joint_stage, plan
from .starting_values import assign, identity, starting_values

if TYPE_CHECKING:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin


def the_plan(config: TrainConfig, datasets: Mapping[str, Records]) -> Plan:
    """The stages of the config's order; the stage of `joint` is built from the others. Raises UsageError."""
    stages: dict[str, Stage] = dict(config.stages)
    if config.order == "joint":
        shares: dict[str, dict[str, float]] = {}
        if config.joint.variant == "all_data":
            for name, stage in config.stages.items():
                shares[name] = Mixture(stage, datasets, config.seed).by_set()
        stages["joint"] = joint_stage(config.stages, config.joint, shares)
    return plan(config.order, stages)


def train(
    config: TrainConfig,
    datasets: Mapping[str, Dataset],
    reader: Reader,
    *,
    stage: str | None = None,
    resume: bool = False,
) -> Path:
    """Train the stages of the config's order.

    Args:
        config: the run.
        datasets: data sets by the names that the stages use.
        reader: (sample, modality set) -> Clip.
        stage: train this stage alone; the stages that it starts from must be finished.
        resume: go on with the run in `config.out`.

    Returns:
        The bundle; if the last stage of the order was not trained, the last checkpoint.

    Raises:
        UsageError: an option or a combination does not exist, or `out` holds a run and `resume` is False.
        CheckpointError: weights are missing, or a checkpoint is damaged or of another configuration.
        MediaError: too many samples cannot be read.
        TrainingError: a folder cannot be written, or the loss is not finite.
        Interrupted: by a signal, with a checkpoint written.
    """
    run_plan = the_plan(config, datasets)
    stages = [candidate for candidate in run_plan.stages if stage in (None, candidate.name)]
    if not stages:
        names = ", ".join(run_plan.order.stages)
        raise UsageError(f"stage {stage!r} is not in order {config.order}: it has {names}")
    for candidate in stages:
        Mixture(candidate, datasets, config.seed)  # raises its errors before anything is loaded
    accelerator = _accelerator(config, stages)
    if accelerator.is_main_process:
        _claim(Path(config.out), [candidate.name for candidate in stages], resume)
    accelerator.wait_for_everyone()
    with Stop() as stop:
        run = _Run(config, run_plan, datasets, reader, accelerator, stop)
        written = run.out
        for candidate in stages:
            written = run.train_stage(candidate)
        run.report_disabled_cache()
        if stages[-1] is run_plan.stages[-1] and accelerator.is_main_process:
            written = run.write_bundle()
        accelerator.wait_for_everyone()
        accelerator.end_training()
    return written


class _Run:
    """The model of a run, and what its stages share.

    Attributes:
        out: folder of the run.
        model: the model; under FSDP each stage gets a new one, since training shards it.
        initial: official name -> value of every trainable tensor before training.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_plan: Plan,
        datasets: Mapping[str, Dataset],
        reader: Reader,
        accelerator: "Accelerator",
        stop: Stop,
    ):
        self.config, self.plan, self.datasets, self.accelerator = config, run_plan, datasets, accelerator
        self.out = Path(config.out)
        self.dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        self.model = self._build()
        self.initial = {
            name: self.model.get_parameter(key).detach().cpu().clone()
            for name, key in trainable_names(self.model).items()
        }
        plugin = getattr(accelerator.state, "fsdp_plugin", None)
        if plugin is not None:
            layer = reference_language(self.model).base.model.layers[0]
            plugin.transformer_cls_names_to_wrap = [type(layer).__name__]
        self.features = Features(self.model, Path(config.cache) if config.cache else None)
        self.job = Job(config, accelerator, self.model, self.features, datasets, reader, stop)
        self.is_sharded = False

    def _build(self) -> NanoEmoX:
        with self.accelerator.main_process_first():
            model = self._build_on_cpu().to(self.accelerator.device)
        if self.config.liger:
            use_liger(model)
        return model

    def _build_on_cpu(self) -> NanoEmoX:
        return build_model(self.config.model, self.out / "base", dtype=self.dtype, seed=self.config.seed)

    def train_stage(self, stage: Stage) -> Path:
        """Train a stage unless it is finished. Returns its last checkpoint."""
        folder = self.out / stage.name
        if self.accelerator.is_main_process:
            checkpoint.sweep(folder)
        self.accelerator.wait_for_everyone()
        batch = self.config.batch * self.accelerator.num_processes
        stage_identity = identity(self.config, self.model, self.plan, stage, batch=batch)
        newest = checkpoint.latest(folder)
        if newest is not None:
            checkpoint.check_config(newest, stage_identity)
            if newest.state["done"]:
                return newest.folder
        values = starting_values(
            self.out, self.plan, stage.name
        )  # raises its errors before the model changes
        if self.accelerator.is_main_process:
            self._write_config()
        if self.is_sharded:
            self.job.model = self.features.model = self.model = self._build()
        self.is_sharded = self.config.fsdp
        assign(self.model, self.initial | values)
        written = StageRun(self.job, stage, folder, stage_identity).run()
        if self.accelerator.is_main_process:
            draw_curves(folder, Mixture(stage, self.datasets, self.config.seed).cells())
        return written

    def _write_config(self) -> None:
        try:
            write_json(self.out / "config.json", to_dict(self.config))
        except OSError as error:
            raise TrainingError(f"{self.out}: cannot be written ({error.strerror})") from error

    def report_disabled_cache(self) -> None:
        """Say on stderr why features are no longer stored, if they are not."""
        if self.features.disabled and self.accelerator.is_main_process:
            print(f"nanoemox: {self.features.disabled}", file=sys.stderr)

    def write_bundle(self) -> Path:
        """Write the model of the last stage as a bundle with a model card. Returns its folder."""
        model, last_stage = self.model, self.plan.stages[-1].name
        if self.config.fsdp:
            model = self._build_on_cpu()
        newest = checkpoint.latest(self.out / last_stage)
        assert newest is not None
        starts = starting_values(self.out, self.plan, last_stage)
        assign(model, self.initial | starts | newest.weights())
        model.source = None
        bundle = self.out / "bundle"
        model.requires_grad_(False).save(bundle)
        (bundle / CARD).write_text(_card(model.config.name, self.plan))
        return bundle


def _card(name: str, run_plan: Plan) -> str:
    """The model card of a trained bundle."""
    lines = [f"# {name}", "", f"Trained by nanoemox in order {run_plan.order.name}.", ""]
    lines += ["| stage | steps | data | trained |", "|---|---:|---|---|"]
    for stage in run_plan.stages:
        sets = ", ".join(source.set for source in stage.data)
        lines.append(f"| {stage.name} | {stage.total} | {sets} | {', '.join(stage.train)} |")
    return "\n".join(lines) + "\n"


def _accelerator(config: TrainConfig, stages: list[Stage]) -> "Accelerator":
    from accelerate import Accelerator, DistributedDataParallelKwargs

    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device 'cuda' is not available here: use auto or cpu")
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    use_bf16 = config.precision == "bfloat16" or (config.precision == "auto" and not on_cpu)
    # Where the modality set varies between batches, some branches have no gradient in a step.
    varying_sets = any(source.modalities for stage in stages for source in stage.data)
    return Accelerator(
        cpu=on_cpu,
        mixed_precision="bf16" if use_bf16 else "no",
        fsdp_plugin=sharding() if config.fsdp else None,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=varying_sets)],
    )


def sharding() -> "FullyShardedDataParallelPlugin":
    """How accelerate shards a model: each layer of the language model, and the rest as one unit."""
    from accelerate import FullyShardedDataParallelPlugin

    return FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")


def _claim(out: Path, stages: list[str], resume: bool) -> None:
    """Create the folder of the run, or check that it can be resumed."""
    existing = [name for name in stages if (out / name).exists()]
    if existing and not resume:
        raise UsageError(
            f"{out}: holds stage {existing[0]} already; add --resume to go on, or choose another --out"
        )
    if resume and not out.is_dir():
        raise UsageError(f"{out}: no such folder, so there is nothing to resume; leave out --resume")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{out}: cannot be written ({error.strerror})") from error
