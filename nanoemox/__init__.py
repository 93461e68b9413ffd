"""Nano-EmoX: from a clip to an answer. Names are imported on first use, so `import nanoemox` is cheap."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_HOME = {
    "load": "loading",
    "load_language": "loading",
    "read_clip": "media",
    "Clip": "media",
    "Limits": "media",
    "NanoEmoX": "model",
    "Encoded": "modules.encoded",
    "Reply": "tasks",
    "NanoEmoXConfig": "config",
    "NanoEmoXError": "errors",
    "InputError": "errors",
    "MediaError": "errors",
    "CheckpointError": "errors",
    "UsageError": "errors",
    "Language": "generation.standalone",
}
_MODULES = {"weights", "config", "media", "tasks", "prompts"}
__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from .config import NanoEmoXConfig as NanoEmoXConfig
    from .errors import CheckpointError as CheckpointError
    from .errors import InputError as InputError
    from .errors import MediaError as MediaError
    from .errors import NanoEmoXError as NanoEmoXError
    from .errors import UsageError as UsageError
    from .generation.standalone import Language as Language
    from .loading import load as load
    from .loading import load_language as load_language
    from .media.clip import Clip as Clip
    from .media.clip import Limits as Limits
    from .media.read import read_clip as read_clip
    from .model import NanoEmoX as NanoEmoX
    from .modules.encoded import Encoded as Encoded
    from .tasks import Reply as Reply


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
