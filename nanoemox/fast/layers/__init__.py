"""Building blocks of the fast encoders: linear layers, attention, transformer, Swin, tensor store."""
