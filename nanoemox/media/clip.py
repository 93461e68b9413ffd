"""What is kept of a file, and what one file may cost."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one file may cost. A file that asks for more is an error."""

    seconds: float = 300.0  # wall clock of the decoder
    memory: int = 4 << 30  # bytes of address space of the decoder
    pixels: int = 8192 * 4352  # of one frame
    duration: float = 12 * 3600.0  # seconds of media
    streams: int = 64


@dataclass
class Clip:
    """What the model sees and hears of a file; a stream that the file does not have is None.

    Attributes:
        frames: uint8 [8,3,224,224], RGB, squashed.
        audio: float32 [8,32000] at 16 kHz, each 2 s window minus its mean.
        subtitle: the words, if any.
        source: name of the file.
        duration: seconds of the part that was read.
        frame_times: seconds from the beginning of the file, one a frame.
        window_starts: first sample of each window, from the beginning of the part that was read.
        notes: what was odd about the file, for people.
        read_seconds: time that reading took.
    """

    frames: Any = None
    audio: Any = None
    subtitle: str | None = None
    source: str = ""
    duration: float = 0.0
    frame_times: list[float] = field(default_factory=list)
    window_starts: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read_seconds: float = 0.0

    @property
    def modalities(self) -> dict[str, list[str]]:
        """{"used": [...], "absent": [...]}; the face is read from the frames."""
        has = {
            "frames": self.frames is not None,
            "face": self.frames is not None,
            "audio": self.audio is not None,
            "subtitle": bool(self.subtitle),
        }
        return {"used": [k for k, v in has.items() if v], "absent": [k for k, v in has.items() if not v]}
