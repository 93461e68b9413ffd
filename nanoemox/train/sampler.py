"""The samples of a batch: a data set per batch, an answer type per sample (docs/training.md section 3).

A draw depends on the seed, the number of the batch and the number of earlier draws from each data set alone;
a checkpoint stores these numbers.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..errors import UsageError
from .stages import Source, Stage

# Data set and answer type -> percent of the samples in the profiles dataset_exact and task_exact.
_PUBLISHED = {
    ("MERCaptionPlus", "description"): (27.5, 26),
    ("MERCaptionPlus", "ovlabel"): (27.5, 28),
    ("MERRFine", "description"): (5, 5),
    ("MIntRec", "intent_recognition"): (2, 2),
    ("MIntRec2", "intent_recognition"): (3, 3),
    ("AvaMERG", "empathic_response_with_coe"): (17.5, 18),
    ("AvaMERG", "emotion_recognition"): (17.5, 18),
}
_PUBLISHED_PROFILES = ("dataset_exact", "task_exact")
PROFILES = ("weights", "natural", *_PUBLISHED_PROFILES)


class Records(Protocol):
    """What the sampler needs of a data set."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The answer types."""

    def __len__(self) -> int:
        """Number of records."""

    def task_of(self, kind: str) -> str:
        """The task of an answer type."""


@dataclass(frozen=True)
class Draw:
    """One sample to be built.

    Attributes:
        source: number of the source within the stage.
        index: number of the record.
        kind: answer type.
        seed: decides the wording of the question, and the replacements if the sample cannot be used.
    """

    source: int
    index: int
    kind: str
    seed: int


def _profiled(stage: Stage) -> tuple[Source, ...]:
    """The sources of a stage with the weights and answer types of its profile."""
    if stage.profile not in PROFILES:
        raise UsageError(
            f"stage {stage.name}: profile {stage.profile!r} does not exist; known are {', '.join(PROFILES)}"
        )
    if stage.profile == "weights":
        return stage.data
    if stage.profile == "natural":
        return tuple(replace(source, weight=None) for source in stage.data)
    column = _PUBLISHED_PROFILES.index(stage.profile)
    table: dict[str, dict[str, float]] = {}
    for (name, kind), percents in _PUBLISHED.items():
        table.setdefault(name, {})[kind] = percents[column]
    if {source.set for source in stage.data} != set(table):
        raise UsageError(
            f"stage {stage.name}: profile {stage.profile} is for the data sets {', '.join(table)}"
        )
    return tuple(
        replace(source, weight=sum(table[source.set].values()), kinds=table[source.set])
        for source in stage.data
    )


class Mixture:
    """The data sets of a stage with their shares.

    Attributes:
        sources: the sources of the stage, with the weights of its profile.
        records: the data set of each source.
        indices: the records of each source that are used.
        kinds: for each source, answer type -> share of its samples.
        shares: share of the batches of each source.

    Raises:
        UsageError: a data set is missing or empty, or a profile, ratio, weight or answer type is wrong.
    """

    def __init__(self, stage: Stage, datasets: Mapping[str, Records], seed: int):
        self.sources = _profiled(stage)
        self.records: list[Records] = []
        self.indices: list[Sequence[int]] = []
        self.kinds: list[dict[str, float]] = []
        for source in self.sources:
            where = f"stage {stage.name}, data set {source.set}"
            if source.set not in datasets:
                known = ", ".join(datasets) or "none"
                raise UsageError(f"{where}: not among the datasets; known are {known}")
            records = datasets[source.set]
            self.records.append(records)
            self.indices.append(_used_indices(source, records, seed, where))
            self.kinds.append(_kind_shares(source, records, where))
        with_weight = [source.weight is not None for source in self.sources]
        if any(with_weight) and not all(with_weight):
            raise UsageError(f"stage {stage.name}: give a weight to every data set or to none")
        weights = {
            str(i): len(indices) if source.weight is None else source.weight
            for i, (source, indices) in enumerate(zip(self.sources, self.indices, strict=True))
        }
        self.shares = list(_normalised(weights, f"stage {stage.name}").values())

    def cells(self) -> dict[tuple[str, str], float]:
        """(data set, task) -> intended share of the samples."""
        cells: dict[tuple[str, str], float] = {}
        for source, records, share, kinds in zip(
            self.sources, self.records, self.shares, self.kinds, strict=True
        ):
            for kind, part in kinds.items():
                cell = source.set, records.task_of(kind)
                cells[cell] = cells.get(cell, 0.0) + share * part
        return cells

    def by_set(self) -> dict[str, float]:
        """Data set -> intended share of the batches."""
        shares: dict[str, float] = {}
        for source, share in zip(self.sources, self.shares, strict=True):
            shares[source.set] = shares.get(source.set, 0.0) + share
        return shares


def _used_indices(source: Source, records: Records, seed: int, where: str) -> Sequence[int]:
    """All records of a source, or the part that its `ratio` selects."""
    if not len(records):
        raise UsageError(f"{where}: holds no record")
    if not 0 < source.ratio <= 1:
        raise UsageError(f"{where}: ratio {source.ratio} is not in (0, 1]")
    everything = range(len(records))
    count = max(1, int(len(records) * source.ratio))
    if count == len(records):
        return everything
    rng = random.Random(f"{seed}|{source.set}|subset")
    return sorted(rng.sample(everything, count))


def _kind_shares(source: Source, records: Records, where: str) -> dict[str, float]:
    kinds = dict(source.kinds) if source.kinds else dict.fromkeys(records.kinds, 1.0)
    unknown = [kind for kind in kinds if kind not in records.kinds]
    if unknown:
        raise UsageError(f"{where}: no answer type {unknown[0]!r}; known are {', '.join(records.kinds)}")
    return _normalised(kinds, where)


def _normalised(weights: Mapping[str, float], where: str) -> dict[str, float]:
    total = sum(weights.values())
    if total <= 0 or min(weights.values()) < 0:
        raise UsageError(f"{where}: weights must not be negative, and one must be above 0")
    return {name: weight / total for name, weight in weights.items()}


class Sampler:
    """Draws the samples of global batches.

    Every process draws the same batches and takes its part of them.

    Args:
        mixture: the data sets and their shares.
        batch: samples per batch.
        seed: start of the random numbers.

    Attributes:
        drawn: number of batches so far.
        used: number of samples so far from each source.
        counts: (data set, task) -> samples so far.
    """

    def __init__(self, mixture: Mixture, batch: int, seed: str):
        self.mixture, self.batch, self.seed = mixture, batch, seed
        self.drawn = 0
        self.used = [0] * len(mixture.sources)
        self.counts: Counter[tuple[str, str]] = Counter()
        self._passes: dict[int, tuple[int, list[int]]] = {}  # source -> number and order of its current pass

    def draw(self) -> list[Draw]:
        """One batch, all of one source. No record of a source is repeated before all have been drawn."""
        rng = random.Random(f"{self.seed}|{self.drawn}")
        (source,) = rng.choices(range(len(self.mixture.shares)), self.mixture.shares)
        kinds = self.mixture.kinds[source]
        records = self.mixture.records[source]
        draws = []
        for _ in range(self.batch):
            (kind,) = rng.choices(list(kinds), list(kinds.values()))
            draws.append(Draw(source, self._next_index(source), kind, rng.getrandbits(48)))
            self.counts[self.mixture.sources[source].set, records.task_of(kind)] += 1
        self.drawn += 1
        return draws

    def _next_index(self, source: int) -> int:
        indices = self.mixture.indices[source]
        number, place = divmod(self.used[source], len(indices))
        if source not in self._passes or self._passes[source][0] != number:
            order = list(indices)
            random.Random(f"{self.seed}|{source}|pass {number}").shuffle(order)
            self._passes[source] = number, order
        self.used[source] += 1
        return self._passes[source][1][place]

    def state(self) -> dict[str, Any]:
        """JSON values that `restore` takes."""
        counts = [[*cell, count] for cell, count in sorted(self.counts.items())]
        return {"drawn": self.drawn, "used": list(self.used), "counts": counts}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.drawn, self.used = state["drawn"], list(state["used"])
        self.counts = Counter({(name, task): count for name, task, count in state["counts"]})
        self._passes.clear()


def realised(counts: Mapping[tuple[str, str], float]) -> dict[str, dict[str, float]]:
    """Counts or shares by (data set, task) -> percent by data set and by task."""
    total = sum(counts.values()) or 1
    percents: dict[str, dict[str, float]] = {"dataset": {}, "task": {}}
    for (name, task), count in counts.items():
        percents["dataset"][name] = percents["dataset"].get(name, 0) + 100 * count / total
        percents["task"][task] = percents["task"].get(task, 0) + 100 * count / total
    return percents
