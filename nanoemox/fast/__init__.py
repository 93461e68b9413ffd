"""The accelerated form of the model: the same weights and results on nanoemox_kernels. Mirrors `modules/`."""
