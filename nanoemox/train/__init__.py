"""Training: the perception-to-empathy curriculum (docs/training.md)."""
