"""The embedded default: a small bundle of the same architecture and a clip to try it on."""
