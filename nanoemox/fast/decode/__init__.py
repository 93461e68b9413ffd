"""The language model for inference: decode engine, its weights, prompts, adapters, smoothing."""
