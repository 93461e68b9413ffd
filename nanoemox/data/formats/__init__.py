"""One module per family of annotation formats; each defines `open_set` (see `nanoemox.data.FORMATS`)."""
