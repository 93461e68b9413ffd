"""The bundle on disk: folder, tensors and their official names, quantised forms. It imports no model."""
