"""From a configuration to a model without values."""

from huggingface_hub.errors import StrictDataclassError
from transformers.activations import ACT2FN

from .bundle.meta import without_parameters
from .config import NanoEmoXConfig
from .errors import CheckpointError
from .model import NanoEmoX

# Parts of PyTorch's messages for sizes and products of sizes past 64 bits, and for buffers past the memory.
_TOO_LARGE = ("overflow", "allocate memory")


def build_empty(config: NanoEmoXConfig, where: object) -> NanoEmoX:
    """The reference model without values: parameters on the meta device, buffers filled.

    Args:
        config: sizes of all parts.
        where: file or name of the configuration, for messages.

    Raises:
        CheckpointError: names an activation that does not exist, or says why the sizes make no model.

    Source: docs/architecture.md section 15.
    """
    _check_activations(config, where)
    try:
        return without_parameters(lambda: NanoEmoX(config))
    except (StrictDataclassError, ValueError) as error:
        # transformers: StrictDataclassError for lists of different lengths (conv_dim, conv_kernel,
        # conv_stride) and a Llama width that its heads do not divide, ValueError for conv_norm.
        # peft: a ValueError for lora.targets that name no layer.
        raise _no_model(where, error) from error
    except (RuntimeError, TypeError) as error:
        # PyTorch. Any other message of these two classes is a bug, not a wrong configuration.
        if not any(part in str(error).lower() for part in _TOO_LARGE):
            raise
        raise _no_model(where, error) from error


def _no_model(where: object, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:300]
    return CheckpointError(f"{where}: these sizes make no model ({type(error).__name__}: {reason})")


def _check_activations(config: NanoEmoXConfig, where: object) -> None:
    activations = {
        "vision.activation": config.vision.activation,
        "audio.activation": config.audio.activation,
        "audio.conv_activation": config.audio.conv_activation,
    }
    for key, name in activations.items():
        if name not in ACT2FN:
            known = ", ".join(sorted(ACT2FN))
            raise CheckpointError(f"{where}: {key} {name!r} does not exist; known are {known}")
