"""Makes bundles: of official checkpoints and base models, or of random numbers."""

from .conversion import convert
from .random_weights import random_bundle

__all__ = ["convert", "random_bundle"]
