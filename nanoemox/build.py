"""From a configuration to a model without values."""

from .bundle.meta import without_parameters
from .config import NanoEmoXConfig
from .errors import CheckpointError
from .model import NanoEmoX


def build_empty(config: NanoEmoXConfig, where: object) -> NanoEmoX:
    """The reference without parameter values. Raises CheckpointError naming `where` if the sizes make no model."""
    try:
        return without_parameters(lambda: NanoEmoX(config))
    except (ValueError, TypeError, KeyError, ArithmeticError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{where}: these sizes make no model ({type(error).__name__}: {reason})"
        ) from error
