"""Linear layers: quantised weights and their products, and cuBLASLt on a share of a GPU."""
