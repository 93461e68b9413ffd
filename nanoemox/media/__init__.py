"""Reads a media file into a Clip. The file is decoded in a child process that can do nothing else."""

from .clip import Clip, Limits
from .read import read_clip

__all__ = ["Clip", "Limits", "read_clip"]
