"""The data sets that a config names, opened."""

from pathlib import Path

from ..data import open_dataset
from ..data.record import Dataset
from ..errors import UsageError
from .config import TrainConfig


def open_datasets(config: TrainConfig, stage: str | None = None) -> dict[str, Dataset]:
    """The data sets of the config's stages, or of one of them. Raises UsageError naming one that is not there."""
    stages = [one for one in config.stages.values() if stage in (None, "joint", one.name)]
    out = {}
    for name in dict.fromkeys(source.set for one in stages for source in one.data):
        if (opened := open_if_there(config, name)) is None:
            raise UsageError(
                f"data set {name}: there is no {_root(config, name)}; --data names the folder of all sets"
            )
        out[name] = opened
    return out


def _root(config: TrainConfig, name: str) -> Path:
    return Path(config.data) / config.datasets[name].root


def open_if_there(config: TrainConfig, name: str) -> Dataset | None:
    """A data set of the config, None where its root does not exist. Raises UsageError."""
    options, root = config.datasets[name], _root(config, name)
    if taken := [option for option in ("format", "root", "split", "name") if option in options.options]:
        raise UsageError(f"data set {name}: {taken[0]} does not belong under options, but beside them")
    if not root.exists():
        return None
    return open_dataset(options.format, root, split=options.split, name=name, **options.options)
