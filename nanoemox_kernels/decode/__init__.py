"""Decode engines: one call runs a whole decoding step of a language model."""
