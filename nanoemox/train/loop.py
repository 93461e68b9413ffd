"""One stage, step by step. Processes communicate through accelerate alone (docs/training.md section 8)."""

import math
import time
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..data.record import Dataset
from ..errors import MediaError, TrainingError
from ..model import NanoEmoX
from . import checkpoint, optimizer
from .config import TrainConfig
from .examples import Batch, Reader, Samples
from .features import Features
from .initial_model import trainable_names
from .learner import Learner
from .log import Log, write_json
from .prefetch import MicroBatch, Prefetcher
from .sampler import Mixture, Sampler, realised
from .signals import Interrupted as Interrupted
from .signals import Stop as Stop
from .stages import Stage

_MIN_TRIED = 50  # samples before the share of bad ones is judged


@dataclass
class Job:
    """What the stages of a run share."""

    config: TrainConfig
    accelerator: Accelerator
    model: NanoEmoX
    features: Features
    datasets: Mapping[str, Dataset]
    reader: Reader
    stop: Stop


class StageRun:
    """Trains one stage into a folder, from its newest checkpoint if there is one.

    Args:
        job: what the stages of the run share.
        stage: the stage.
        folder: of the stage.
        identity: configuration that a checkpoint must agree with to be resumed.

    Attributes:
        step: optimiser steps so far.
        parameters: official name -> trained parameter, sharded if the run is.
    """

    def __init__(self, job: Job, stage: Stage, folder: Path, identity: Mapping[str, Any]):
        self.job, self.stage, self.folder, self.identity = job, stage, folder, identity
        config, accelerator = job.config, job.accelerator
        self.ranks, self.rank = accelerator.num_processes, accelerator.process_index
        self.schedule = stage.schedule
        self.mixture = Mixture(stage, job.datasets, config.seed)
        self.sampler = Sampler(self.mixture, config.batch * self.ranks, f"{config.seed}|{stage.name}")
        samples = Samples(
            stage,
            [job.datasets[source.set] for source in self.mixture.sources],
            [source.modalities or stage.modalities for source in self.mixture.sources],
            job.model,
            job.features,
            job.reader,
            indices=self.mixture.indices,
            max_tokens=config.max_tokens,
        )
        self.prefetcher = Prefetcher(self.sampler, samples, config, self.rank)
        self.step = 0
        names = trainable_names(job.model, stage.train)
        learner = Learner(job.model, stage.train)
        if config.gradient_checkpointing:
            learner.checkpoint_gradients()
        parameters = {name: job.model.get_parameter(key) for name, key in names.items()}
        adamw = optimizer.adamw(parameters, weight_decay=config.weight_decay, betas=config.betas)
        self.learner, prepared = accelerator.prepare(learner, adamw)
        self.optimizer: torch.optim.Optimizer = prepared.optimizer
        # Looked up again, since `prepare` replaces parameters that it shards.
        self.parameters = {name: job.model.get_parameter(key) for name, key in names.items()}
        self._resume()
        self.log = Log(folder, stage.name, stage.total, step=self.step, rank=self.rank)

    def _resume(self) -> None:
        """Restore the newest checkpoint, if there is one."""
        newest = checkpoint.latest(self.folder)
        if newest is None:
            return
        checkpoint.check_config(newest, self.identity)
        optimizer.assign(self.parameters, newest.weights())
        optimizer.restore(self.optimizer, self.parameters, newest.moments(), newest.state["updates"])
        self.sampler.restore(newest.state["sampler"])
        self.step = newest.state["step"]
        if self.rank == 0:  # of all processes
            self.prefetcher.tried, self.prefetcher.bad = newest.state["tried"], newest.state["bad"]

    def run(self) -> Path:
        """Train to the end of the stage.

        Returns:
            The folder of the last checkpoint.

        Raises:
            MediaError: too many samples cannot be read.
            TrainingError: the loss is not finite, or a checkpoint cannot be written.
            Interrupted: by a signal, with a checkpoint written.
        """
        try:
            return self._train()
        finally:
            self.prefetcher.close()
            self.log.close()
            self.job.accelerator.free_memory()

    def _train(self) -> Path:
        config, stage = self.job.config, self.stage
        ahead = self.prefetcher.draw()
        written = self.folder
        while self.step < stage.total:
            sampler_state, drawn = self.sampler.state(), ahead
            if self.step + 1 < stage.total:
                ahead = self.prefetcher.draw()  # its media are read while this step computes
            signal_number = self._step(drawn)
            self.step += 1
            is_epoch_end = self.step % stage.steps == 0
            if is_epoch_end:
                self.job.features.refresh()
            is_due = self.step % config.checkpoint_every == 0 or (config.keep_epochs and is_epoch_end)
            if signal_number or is_due or self.step == stage.total:
                written = self._save(sampler_state)
            if signal_number and self.step < stage.total:
                raise Interrupted(signal_number, written)
        tried, bad = self.prefetcher.tried, self.prefetcher.bad
        if self.rank == 0 and bad:
            self.log.say(f"stage {stage.name}: {bad} of {tried} samples were skipped, see {self.log.skipped}")
        return written

    def _sum(self, *values: float) -> list[float]:
        """Sums over all processes."""
        own = torch.tensor(values, dtype=torch.float64, device=self.job.accelerator.device)
        return self.job.accelerator.reduce(own, "sum").tolist()

    def _step(self, drawn: list[MicroBatch]) -> int:
        """One update. Returns the number of the signal that requested the end, 0 if there is none."""
        began, config = time.perf_counter(), self.job.config
        batches, rejected, error = self.prefetcher.collect(drawn)
        for sample in rejected:
            self.log.skip({"step": self.step, "stage": self.stage.name, **vars(sample)})
        tokens, tried, bad, failures, signal_number = self._sum(
            sum(batch.tokens for batch in batches),
            self.prefetcher.tried,
            self.prefetcher.bad,
            error is not None,
            self.job.stop.signal,
        )
        if failures:
            raise error or MediaError(
                f"stage {self.stage.name}: another process found no sample that can be used"
            )
        if tried >= _MIN_TRIED and bad > config.max_bad_share * tried:
            raise MediaError(
                f"stage {self.stage.name}: {bad:.0f} of {tried:.0f} samples could not be read, more than the "
                f"{config.max_bad_share:.0%} of max_bad_share; {self.log.skipped} lists them"
            )
        epoch, step = divmod(self.step, self.stage.steps)
        rate = self.schedule.rate(epoch, step)
        optimizer.set_rate(self.optimizer, rate)
        (total,) = self._sum(self._backward(batches, tokens))
        if not math.isfinite(total):
            raise TrainingError(
                f"stage {self.stage.name}, step {self.step}: the loss is {total}; lower init_lr or set "
                "clip_norm, and resume from the last checkpoint"
            )
        norm = None
        if config.clip_norm is not None:
            parameters = list(self.parameters.values())
            norm = self.job.accelerator.clip_grad_norm_(parameters, config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        row: dict[str, Any] = {"step": self.step, "epoch": epoch, "loss": total / tokens, "lr": rate}
        row["tokens"] = int(tokens)
        if norm is not None:
            row["norm"] = float(norm)
        row["dataset"] = self.mixture.sources[drawn[0].source].set
        row["seconds"] = round(time.perf_counter() - began, 4)
        self.log.step(row)
        return int(signal_number)

    def _backward(self, batches: list[Batch], tokens: float) -> float:
        """Accumulate the gradients of this process. Returns the sum of its loss over its label tokens.

        Processes average their gradients, but the loss of a step is the sum over the label tokens of all
        processes divided by their number, `tokens`.
        """
        accelerator = self.job.accelerator
        total = 0.0
        for i, batch in enumerate(batches):
            # Dropout depends on these numbers alone, so that a resumed run repeats it.
            place = f"{self.job.config.seed}|{self.stage.name}|{self.step}|{i}|{self.rank}"
            torch.manual_seed(zlib.crc32(place.encode()))
            is_last = i == len(batches) - 1
            with nullcontext() if is_last else accelerator.no_sync(self.learner):
                device = accelerator.device
                loss = self.learner(
                    {name: value.to(device) for name, value in batch.features.items()},
                    batch.ids.to(device),
                    batch.labels.to(device),
                    batch.mask.to(device),
                    batch.modalities,
                )
                accelerator.backward(loss * (self.ranks / tokens))
            total += float(loss.detach())
        return total

    def _save(self, sampler_state: Mapping[str, Any]) -> Path:
        """Write a checkpoint. The first process writes; the others wait, and fail with it."""
        weights = {name: optimizer.whole(value) for name, value in self.parameters.items()}
        moments, updates = optimizer.state_of(self.optimizer, self.parameters)
        self.job.features.flush()
        tried, bad = self._sum(self.prefetcher.tried, self.prefetcher.bad)
        failure: OSError | None = None
        if self.rank == 0:
            state = {
                "stage": self.stage.name,
                "step": self.step,
                "done": self.step == self.stage.total,
                "sampler": sampler_state,
                "tried": int(tried),
                "bad": int(bad),
                "updates": updates,
                "config": self.identity,
            }
            try:
                self._write(weights, moments, state)
            except OSError as error:
                failure = error
        (failures,) = self._sum(failure is not None)
        if failures:
            previous = checkpoint.latest(self.folder)
            earlier = f"{previous.folder} is whole" if previous else "there is none before it"
            reason = failure.strerror if failure else "the first process says why"
            raise TrainingError(
                f"{self.folder}: the checkpoint of step {self.step} cannot be written ({reason}); {earlier}: "
                "make room, then --resume"
            ) from failure
        return checkpoint.folder_of(self.folder, self.step)

    def _write(
        self, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor], state: dict[str, Any]
    ) -> None:
        """The checkpoint and mixture.json; older checkpoints are deleted."""
        config = self.job.config
        checkpoint.save(self.folder, weights, moments, state)
        self._write_mixture(state["sampler"])
        keep = 1 if state["done"] else config.keep
        checkpoint.prune(self.folder, keep=keep, epoch=self.stage.steps if config.keep_epochs else None)

    def _write_mixture(self, sampler_state: Mapping[str, Any]) -> None:
        """Samples drawn so far by data set and task, and their drawn and intended percents."""
        counts = {(name, task): count for name, task, count in sampler_state["counts"]}
        mixture = {
            "step": self.step,
            "drawn": {f"{name}/{task}": count for (name, task), count in counts.items()},
            "percent": realised(counts),
            "intended": {
                f"{name}/{task}": 100 * share for (name, task), share in self.mixture.cells().items()
            },
        }
        write_json(self.folder / "mixture.json", mixture)
