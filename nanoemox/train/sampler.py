"""Which samples a batch is made of: a data set per batch, an answer type within it per sample (tasks.md 6.3).

The draw of a batch depends on the seed, its number and how often each data set was drawn before, and on nothing else;
that is also all that a checkpoint must hold of it.
"""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..errors import UsageError
from .stages import Source, Stage

# Percent of the batches, or of the samples of a batch, by data set and answer type: tasks.md 6.3. "natural" is in
# proportion to size; "weights" takes the sources' own, and sizes where there are none.
_CELLS = {
    "dataset_exact": (27.5, 27.5, 5, 2, 3, 17.5, 17.5),
    "task_exact": (26, 28, 5, 2, 3, 18, 18),
}
_PLACES = (
    ("MERCaptionPlus", "description"),
    ("MERCaptionPlus", "ovlabel"),
    ("MERRFine", "description"),
    ("MIntRec", "intent_recognition"),
    ("MIntRec2", "intent_recognition"),
    ("AvaMERG", "empathic_response_with_coe"),
    ("AvaMERG", "emotion_recognition"),
)
PROFILES = ("weights", "natural", *_CELLS)


class Records(Protocol):
    """What the sampler asks of a data set."""

    @property
    def kinds(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def task_of(self, kind: str) -> str: ...


@dataclass(frozen=True)
class Draw:
    """One sample to be built. `seed` decides its question's wording and what replaces it if it cannot be used."""

    source: int  # number of the source within the stage
    index: int
    kind: str
    seed: int


def _profiled(stage: Stage) -> tuple[Source, ...]:
    """The stage's sources with the weights and answer types of its profile."""
    if stage.profile not in PROFILES:
        raise UsageError(
            f"stage {stage.name}: profile {stage.profile!r} does not exist; known are {', '.join(PROFILES)}"
        )
    if stage.profile == "weights":
        return stage.data
    if stage.profile == "natural":
        return tuple(replace(source, weight=None) for source in stage.data)
    table: dict[str, dict[str, float]] = {}
    for (name, kind), share in zip(_PLACES, _CELLS[stage.profile], strict=True):
        table.setdefault(name, {})[kind] = share
    if {source.set for source in stage.data} != set(table):
        raise UsageError(
            f"stage {stage.name}: profile {stage.profile} is for the data sets {', '.join(table)}"
        )
    return tuple(
        replace(source, weight=sum(table[source.set].values()), kinds=table[source.set])
        for source in stage.data
    )


class Mixture:
    """A stage's data sets with their shares: p[source], q[source][kind], and the records that are used."""

    def __init__(self, stage: Stage, datasets: Mapping[str, Records], seed: int):
        self.sources = _profiled(stage)
        self.records: list[Records] = []
        self.kept: list[list[int] | range] = []
        self.kinds: list[dict[str, float]] = []
        for source in self.sources:
            where = f"stage {stage.name}, data set {source.set}"
            if source.set not in datasets:
                raise UsageError(
                    f"{where}: not among the datasets; known are {', '.join(datasets) or 'none'}"
                )
            records = datasets[source.set]
            if not len(records):
                raise UsageError(f"{where}: holds no record")
            if not 0 < source.ratio <= 1:
                raise UsageError(f"{where}: ratio {source.ratio} is not in (0, 1]")
            count = max(1, int(len(records) * source.ratio))
            chosen = random.Random(f"{seed}|{source.set}|subset")
            everything = range(len(records))
            self.kept.append(
                everything if count == len(records) else sorted(chosen.sample(everything, count))
            )
            kinds = dict(source.kinds) if source.kinds else dict.fromkeys(records.kinds, 1.0)
            if unknown := [kind for kind in kinds if kind not in records.kinds]:
                raise UsageError(
                    f"{where}: no answer type {unknown[0]!r}; known are {', '.join(records.kinds)}"
                )
            self.records.append(records)
            self.kinds.append(_shares(kinds, where))
        given = [source.weight is not None for source in self.sources]
        if any(given) and not all(given):
            raise UsageError(f"stage {stage.name}: give a weight to every data set or to none")
        weights = {
            str(i): len(self.kept[i]) if s.weight is None else s.weight for i, s in enumerate(self.sources)
        }  # fmt: skip
        self.shares = list(_shares(weights, f"stage {stage.name}").values())

    def cells(self) -> dict[tuple[str, str], float]:
        """(data set, task) -> expected share of the samples."""
        out: dict[tuple[str, str], float] = {}
        for source, records, share, kinds in zip(
            self.sources, self.records, self.shares, self.kinds, strict=True
        ):
            for kind, part in kinds.items():
                cell = source.set, records.task_of(kind)
                out[cell] = out.get(cell, 0.0) + share * part
        return out

    def by_set(self) -> dict[str, float]:
        out: dict[str, float] = {}
        for source, share in zip(self.sources, self.shares, strict=True):
            out[source.set] = out.get(source.set, 0.0) + share
        return out


def _shares(weights: Mapping[str, float], where: str) -> dict[str, float]:
    total = sum(weights.values())
    if total <= 0 or min(weights.values()) < 0:
        raise UsageError(f"{where}: weights must not be negative, and one must be above 0")
    return {name: weight / total for name, weight in weights.items()}


class Sampler:
    """Draws global batches of `batch` samples; every process draws the same ones and takes its part."""

    def __init__(self, mixture: Mixture, batch: int, seed: str):
        self.mixture, self.batch, self.seed = mixture, batch, seed
        self.drawn = 0  # batches
        self.used = [0] * len(mixture.sources)  # samples of each source
        self.counts: Counter[tuple[str, str]] = Counter()  # (data set, task) -> samples
        self._pass: dict[int, tuple[int, list[int]]] = {}

    def draw(self) -> list[Draw]:
        """One batch, all of one source. Within a source no record comes again before all have come."""
        rng = random.Random(f"{self.seed}|{self.drawn}")
        (source,) = rng.choices(range(len(self.mixture.shares)), self.mixture.shares)
        kinds = self.mixture.kinds[source]
        records = self.mixture.records[source]
        out = []
        for _ in range(self.batch):
            (kind,) = rng.choices(list(kinds), list(kinds.values()))
            out.append(Draw(source, self._next(source), kind, rng.getrandbits(48)))
            self.counts[self.mixture.sources[source].set, records.task_of(kind)] += 1
        self.drawn += 1
        return out

    def _next(self, source: int) -> int:
        kept = self.mixture.kept[source]
        number, place = divmod(self.used[source], len(kept))
        if self._pass.get(source, (-1,))[0] != number:
            order = list(kept)
            random.Random(f"{self.seed}|{source}|pass {number}").shuffle(order)
            self._pass[source] = number, order
        self.used[source] += 1
        return self._pass[source][1][place]

    def state(self) -> dict[str, Any]:
        """JSON that `restore` takes."""
        counts = [[*cell, count] for cell, count in sorted(self.counts.items())]
        return {"drawn": self.drawn, "used": list(self.used), "counts": counts}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.drawn, self.used = state["drawn"], list(state["used"])
        self.counts = Counter({(name, task): count for name, task, count in state["counts"]})
        self._pass.clear()


def realised(counts: Mapping[tuple[str, str], int]) -> dict[str, dict[str, float]]:
    """Counts by (data set, task) -> percent by data set and by task."""
    total = sum(counts.values()) or 1
    out: dict[str, dict[str, float]] = {"dataset": {}, "task": {}}
    for (name, task), count in counts.items():
        out["dataset"][name] = out["dataset"].get(name, 0) + 100 * count / total
        out["task"][task] = out["task"].get(task, 0) + 100 * count / total
    return out
