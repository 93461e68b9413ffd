"""The synthetic affect corpus: drawn faces, synthetic voices and words that do not always agree."""

from .writer import write_corpus as write_corpus
