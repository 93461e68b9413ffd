"""The data sets that a config names, opened."""

from pathlib import Path

from ..data import open_dataset
from ..data.record import Dataset
from ..errors import UsageError
from .config import TrainConfig


def open_datasets(config: TrainConfig, stage: str | None = None) -> dict[str, Dataset]:
    """Open the data sets of the config's stages.

    Args:
        config: the run.
        stage: only the data sets of this stage; "joint" stands for all stages.

    Returns:
        Name in the config -> data set.

    Raises:
        UsageError: the root of a data set does not exist.
        DataError: an annotation file is missing or malformed.
    """
    stages = [candidate for candidate in config.stages.values() if stage in (None, "joint", candidate.name)]
    names = [source.set for candidate in stages for source in candidate.data]
    datasets = {}
    for name in dict.fromkeys(names):
        dataset = open_if_there(config, name)
        if dataset is None:
            raise UsageError(
                f"data set {name}: there is no {_root(config, name)}; --data names the folder of all sets"
            )
        datasets[name] = dataset
    return datasets


def open_if_there(config: TrainConfig, name: str) -> Dataset | None:
    """A data set of the config, None if its root does not exist.

    Raises:
        UsageError: an option that belongs elsewhere.
        DataError: an annotation file is missing or malformed.
    """
    options, root = config.datasets[name], _root(config, name)
    misplaced = [key for key in ("format", "root", "split", "name") if key in options.options]
    if misplaced:
        raise UsageError(f"data set {name}: {misplaced[0]} does not belong under options, but beside them")
    if not root.exists():
        return None
    return open_dataset(options.format, root, split=options.split, name=name, **options.options)


def _root(config: TrainConfig, name: str) -> Path:
    return Path(config.data) / config.datasets[name].root
