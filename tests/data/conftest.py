"""Annotation files of every data set, written out."""

import json

import numpy as np
import pytest
from paths import ROOT


@pytest.fixture(scope="session")
def packed():
    return json.loads((ROOT / "tests" / "fixtures" / "annotations.json").read_text())


@pytest.fixture(scope="session")
def annotations(packed, tmp_path_factory):
    """A folder with one folder a data set."""
    folder = tmp_path_factory.mktemp("annotations")
    for name, text in packed["texts"].items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    for name, arrays in packed["archives"].items():
        (folder / name).parent.mkdir(exist_ok=True)
        np.savez(folder / name, **{key: np.array(value, dtype=object) for key, value in arrays.items()})
    return folder
