"""Errors that a user can cause. Each message is one line: the file or key, what is wrong, and what to do."""


class MediaError(ValueError):
    """A clip or subtitle that cannot be read."""


class CheckpointError(ValueError):
    """Weights that are missing, incomplete or not in a form that is accepted."""


class UsageError(ValueError):
    """An option, name or combination that does not exist."""
