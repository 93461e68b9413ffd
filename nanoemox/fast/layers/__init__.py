"""Building blocks of the fast encoders:

linear layers, attention, transformer and Swin stages, weight storage.
"""
