"""Decode engines: a whole step of a language model."""
