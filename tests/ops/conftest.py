"""Ops run on the GPU where there is one; without it their Triton kernels run in Triton's interpreter."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported

import pytest


@pytest.fixture(autouse=True)
def _unwritten_cells_are_nan():
    """Deterministic mode fills torch.empty with NaN, so that a cell which a kernel forgot is seen at once."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"
