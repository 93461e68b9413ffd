"""Errors that a user can mend. Each message is one line: the file or key, what is wrong, and what to do.

The command shows them as that line. Any other exception is a bug of this package and is reported as one.
"""


class NanoEmoXError(ValueError):
    """Base class of every error that a user can mend."""


class UsageError(NanoEmoXError):
    """An option, argument, name or combination that does not exist or is out of range."""


class MediaError(NanoEmoXError):
    """A clip or subtitle that cannot be read."""


class CheckpointError(NanoEmoXError):
    """Weights that are missing, incomplete or not in a form that is accepted."""


class DataError(NanoEmoXError):
    """A data file, manifest, label or training config whose content is wrong."""


class TrainingError(NanoEmoXError):
    """Training that cannot go on: no finite loss, a checkpoint of another run, a worker that failed."""
