"""Makes bundles from official checkpoints and base models, or from random numbers."""

from .conversion import convert
from .random_weights import random_bundle

__all__ = ["convert", "random_bundle"]
