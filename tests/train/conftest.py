"""A tiny bundle on disk, made once; and what keeps many small runs quick."""

import gc

import pytest
import tiny_training

from nanoemox.weights import random_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    gc.freeze()  # every stage ends with a collection, which need not walk what was imported
    yield random_bundle(tiny_training.tiny(), tmp_path_factory.mktemp("bundle") / "tiny", dtype="float32")
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch):
    """Plots take longer than the steps. The run that a module shares is made before this, and has them."""
    monkeypatch.setattr("nanoemox.train.run.draw_curves", lambda *_: None)
