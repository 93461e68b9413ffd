"""The reference parts of the model in plain PyTorch, one file a part. `fast/` mirrors them."""
