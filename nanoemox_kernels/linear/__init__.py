"""Linear layers: quantised weights and their products; cuBLASLt on part of a GPU."""
