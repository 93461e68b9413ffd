"""Errors that a user can mend. Each message is one line: the file or key, what is wrong, and what to do.

The command shows such an error as that line. Any other exception is a bug and is reported as one.
"""


class NanoEmoXError(ValueError):
    """Base class of every error that a user can mend."""


class UsageError(NanoEmoXError):
    """An option, argument or name that does not exist, is out of range, or does not fit another one."""


class InputError(NanoEmoXError):
    """An input that the model cannot take: too long a prompt, an array of a wrong shape, an empty clip."""


class MediaError(NanoEmoXError):
    """A clip or subtitle that cannot be read."""


class CheckpointError(NanoEmoXError):
    """Weights that are missing, incomplete or not in a form that is accepted."""


class DataError(NanoEmoXError):
    """A data file, manifest or label whose content is wrong."""


class TrainingError(NanoEmoXError):
    """Training that cannot go on: a loss that is not finite, too many unreadable samples, a full disk."""
