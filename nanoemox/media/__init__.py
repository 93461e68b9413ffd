"""Any file FFmpeg reads -> a Clip: `read_clip`. The file is decoded in a child process."""

from .clip import Clip, Limits
from .read import read_clip

__all__ = ["Clip", "Limits", "read_clip"]
