"""One file a family of annotation formats; each has `open_set`."""
