"""A tiny bundle on disk, made once."""

import pytest
import tiny_training

from nanoemox.weights import random_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return random_bundle(tiny_training.tiny(), tmp_path_factory.mktemp("bundle") / "tiny", dtype="float32")
