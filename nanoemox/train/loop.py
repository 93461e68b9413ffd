"""One stage, step by step. Communication is accelerate's alone: one process, several GPUs or several hosts alike."""

import signal
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from ..data.record import Dataset
from ..errors import MediaError
from ..model import NanoEmoX
from . import checkpoint, optimizer
from .config import TrainConfig
from .examples import Batch, Example, Reader, Rejected, Samples, Unusable
from .features import Features
from .initial_model import trainable_names
from .learner import Learner
from .log import Log, write_json
from .sampler import Mixture, Sampler, realised
from .stages import Stage

_TRIED = 50  # samples before the share of bad ones is judged


class Stop:
    """SIGINT and SIGTERM ask for the end of the step; a second one ends at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        for one, handler in self._before.items():
            signal.signal(one, handler)


class Interrupted(Exception):
    """A signal ended the run; its checkpoint is written."""

    def __init__(self, number: int, folder: Path):
        super().__init__(f"interrupted; {folder} is written, --resume goes on from it")
        self.number = number


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
    """Trains one stage into a folder, from its newest checkpoint if there is one."""

    def __init__(self, job: Job, stage: Stage, folder: Path, identity: Mapping[str, Any]):
        """`identity`: what a checkpoint must agree with to be resumed."""
        self.job, self.stage, self.folder, self.identity = job, stage, folder, identity
        config, accelerator = job.config, job.accelerator
        self.ranks, self.rank = accelerator.num_processes, accelerator.process_index
        mixture = Mixture(stage, job.datasets, config.seed)
        self.sampler = Sampler(mixture, config.batch * self.ranks, f"{config.seed}|{stage.name}")
        self.samples = Samples(
            stage,
            [job.datasets[source.set] for source in mixture.sources],
            [source.modalities or stage.modalities for source in mixture.sources],
            job.model,
            job.features,
            job.reader,
            kept=mixture.kept,
            max_tokens=config.max_tokens,
        )
        self.mixture = mixture
        self.step = 0
        self.tried = self.bad = 0  # samples whose media was asked for, and how many of them could not be read
        self.schedule = stage.schedule

    def run(self) -> Path:
        """Returns the folder of the last checkpoint. Raises MediaError, Interrupted, or ValueError for a full disk."""
        job, config = self.job, self.job.config
        found = checkpoint.latest(self.folder)
        names = trainable_names(job.model, self.stage.train)
        learner: Any = Learner(job.model, self.stage.train)
        if config.gradient_checkpointing:
            learner.checkpoint_gradients()
        parameters = {name: job.model.get_parameter(key) for name, key in names.items()}
        adamw = optimizer.adamw(parameters, weight_decay=config.weight_decay, betas=config.betas)
        self.learner, prepared = job.accelerator.prepare(learner, adamw)
        self.optimizer = prepared.optimizer
        self.parameters = {
            name: job.model.get_parameter(key) for name, key in names.items()
        }  # sharded by now, maybe
        if found is not None:
            checkpoint.check_config(found, self.identity)
            optimizer.assign(self.parameters, found.weights())
            optimizer.restore(self.optimizer, self.parameters, found.moments(), found.state["updates"])
            self.sampler.restore(found.state["sampler"])
            self.step = found.state["step"]
            if self.rank == 0:  # sums over all processes
                self.tried, self.bad = found.state["tried"], found.state["bad"]
        self.log = Log(self.folder, self.stage.name, self.stage.total, step=self.step, rank=self.rank)
        self.pool = ThreadPoolExecutor(config.workers)
        try:
            return self._train()
        finally:
            self.pool.shutdown(wait=False, cancel_futures=True)
            self.log.close()
            job.accelerator.free_memory()

    def _train(self) -> Path:
        config, stage = self.job.config, self.stage
        ahead = self._draw()
        written = self.folder
        while self.step < stage.total:
            state, drawn = self.sampler.state(), ahead
            if self.step + 1 < stage.total:
                ahead = self._draw()  # read while this step computes
            number = self._step(drawn)
            self.step += 1
            if self.step % stage.steps == 0:
                self.job.features.refresh()
            due = self.step % config.checkpoint_every == 0 or (
                config.keep_epochs and self.step % stage.steps == 0
            )
            if number or due or self.step == stage.total:
                written = self._save(state)
            if number and self.step < stage.total:
                raise Interrupted(number, written)
        if self.rank == 0 and self.bad:
            self.log.say(
                f"stage {stage.name}: {self.bad} of {self.tried} samples were skipped, see {self.log.skipped}"
            )
        return written

    def _draw(self) -> list[tuple[int, list["Future[Example]"]]]:
        """The micro-batches of the next step: their source, and this process's part of their samples."""
        out = []
        for _ in range(self.job.config.accumulate):
            draws = self.sampler.draw()
            mine = draws[self.rank * self.job.config.batch :][: self.job.config.batch]
            out.append((draws[0].source, [self.pool.submit(self.samples.fetch, draw) for draw in mine]))
        return out

    def _collect(
        self, drawn: list[tuple[int, list["Future[Example]"]]]
    ) -> tuple[list[Batch], MediaError | None]:
        """Batches of the drawn samples; an error instead of raising it, so that all processes can stop together."""
        batches: list[Batch] = []
        try:
            for source, futures in drawn:
                examples = []
                for future in futures:
                    examples.append(future.result())
                    self._count(examples[-1].rejected)
                    self.tried += 1
                batches.append(self.samples.batch(examples, source))
        except Unusable as error:
            self._count(error.rejected)
            return batches, error
        return batches, None

    def _count(self, rejected: list[Rejected]) -> None:
        for one in rejected:
            self.log.skip({"step": self.step, "stage": self.stage.name, **vars(one)})
            if not one.long:
                self.tried, self.bad = self.tried + 1, self.bad + 1

    def _sum(self, *values: float) -> list[float]:
        """Sums over all processes."""
        mine = torch.tensor(values, dtype=torch.float64, device=self.job.accelerator.device)
        return self.job.accelerator.reduce(mine, "sum").tolist()

    def _step(self, drawn: list[tuple[int, list["Future[Example]"]]]) -> int:
        """One update. Returns the signal that asked for an end, 0 if none did."""
        began, accelerator, config = time.perf_counter(), self.job.accelerator, self.job.config
        batches, failed = self._collect(drawn)
        count = sum(batch.tokens for batch in batches)
        tokens, tried, bad, failures, number = self._sum(
            count, self.tried, self.bad, failed is not None, self.job.stop.signal
        )
        if failures:
            raise failed or MediaError(
                f"stage {self.stage.name}: another process found no sample that can be used"
            )
        if tried >= _TRIED and bad > config.max_bad_share * tried:
            raise MediaError(
                f"stage {self.stage.name}: {bad:.0f} of {tried:.0f} samples could not be read, more than the "
                f"{config.max_bad_share:.0%} of max_bad_share; {self.log.skipped} lists them"
            )
        epoch, within = divmod(self.step, self.stage.steps)
        rate = self.schedule.rate(epoch, within)
        optimizer.set_rate(self.optimizer, rate)
        total = 0.0
        for i, batch in enumerate(batches):
            # Dropout depends on these alone, so that a resumed run repeats it.
            place = f"{config.seed}|{self.stage.name}|{self.step}|{i}|{self.rank}"
            torch.manual_seed(zlib.crc32(place.encode()))
            last = i == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.learner):
                device = accelerator.device
                loss = self.learner(
                    {name: value.to(device) for name, value in batch.features.items()},
                    batch.ids.to(device),
                    batch.labels.to(device),
                    batch.mask.to(device),
                    batch.modalities,
                )
                # Processes average their gradients; what is wanted is the sum over all label tokens by their count.
                accelerator.backward(loss * (self.ranks / tokens))
            total += float(loss.detach())
        (total,) = self._sum(total)
        if not torch.tensor(total).isfinite():
            raise ValueError(
                f"stage {self.stage.name}, step {self.step}: the loss is {total}; lower init_lr or set clip_norm, and "
                "resume from the last checkpoint"
            )
        norm = None
        if config.clip_norm is not None:
            norm = accelerator.clip_grad_norm_(list(self.parameters.values()), config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        source, _ = drawn[0]
        row: dict[str, Any] = {"step": self.step, "epoch": epoch, "loss": total / tokens, "lr": rate}
        row |= {"tokens": int(tokens)} | ({} if norm is None else {"norm": float(norm)})
        row |= {"dataset": self.mixture.sources[source].set, "seconds": round(time.perf_counter() - began, 4)}
        self.log.step(row)
        return int(number)

    def _log_mixture(self, sampler: Mapping[str, Any]) -> None:
        """Samples drawn so far by data set and task, and the percents that they are and should be."""
        counts = {(name, task): count for name, task, count in sampler["counts"]}
        drawn = {f"{name}/{task}": count for (name, task), count in counts.items()}
        intended = {f"{name}/{task}": 100 * share for (name, task), share in self.mixture.cells().items()}
        row = {"step": self.step, "drawn": drawn, "percent": realised(counts), "intended": intended}
        write_json(self.folder / "mixture.json", row)

    def _save(self, sampler: Mapping[str, Any]) -> Path:
        """The first process writes; the others wait and learn of a failure."""
        weights = {name: optimizer.whole(value) for name, value in self.parameters.items()}
        moments, updates = optimizer.state_of(self.optimizer, self.parameters)
        self.job.features.flush()
        failure: OSError | None = None
        tried, bad = self._sum(self.tried, self.bad)
        if self.rank == 0:
            state = {"stage": self.stage.name, "step": self.step, "done": self.step == self.stage.total}
            state |= {"sampler": sampler, "tried": int(tried), "bad": int(bad)}
            state |= {"updates": updates, "config": self.identity}
            try:
                written = checkpoint.save(self.folder, weights, moments, state)
                self._log_mixture(sampler)
                epoch = self.stage.steps if self.job.config.keep_epochs else None
                checkpoint.prune(
                    self.folder, keep=self.job.config.keep if not state["done"] else 1, epoch=epoch
                )
            except OSError as error:
                failure = error
        if self._sum(failure is not None)[0]:
            before = checkpoint.latest(self.folder)
            kept = f"{before.folder} is whole" if before else "there is none before it"
            reason = failure.strerror if failure else "the first process says why"
            raise ValueError(
                f"{self.folder}: the checkpoint of step {self.step} cannot be written ({reason}); {kept}: make room, "
                "then --resume"
            ) from failure
        return written if self.rank == 0 else self.folder / f"checkpoint-{self.step:08d}"
