"""The fast language model: decode engine, how it is built from weights, adapters, smoothing."""
