"""Shared pieces. Nothing here needs a network; the folder of full fixtures is used if it is there."""

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import pytest
import torch
from paths import SAMPLE

import nanoemox


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def behaviour():
    return json.loads((Path(__file__).parent / "fixtures" / "behaviour.json").read_text())


@pytest.fixture(scope="session")
def demo():
    """The embedded model in fp32."""
    return nanoemox.load("demo", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def sample():
    return nanoemox.read_clip(SAMPLE, subtitle="It will be fine.")
