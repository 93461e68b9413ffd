"""What the model takes of a file, and what reading one file may cost."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What reading one file may cost. A file that needs more is a MediaError.

    Attributes:
        seconds: wall-clock time of the decoder.
        memory: bytes of address space of the decoder.
        pixels: of one frame.
        duration: seconds of media.
        streams: streams of the file.
    """

    seconds: float = 300.0
    memory: int = 4 << 30
    pixels: int = 8192 * 4352
    duration: float = 12 * 3600.0
    streams: int = 64


@dataclass
class Clip:
    """What the model takes of a file; a stream that the file does not have is None.

    `read_clip` makes clips of files. A clip can also be made from arrays: `Clip(frames=..., audio=...)`.

    Attributes:
        frames: uint8 [8,3,224,224], RGB, values 0 to 255, squashed to a square; NumPy array or tensor.
        audio: float32 [8,32000], full scale 1, 16 kHz: 8 windows of 2 s, each minus its mean; NumPy array or
            tensor.
        subtitle: the words, if any.
        source: name of the file.
        duration: length in seconds of the part that was read.
        frame_times: time of each frame in seconds from where the file begins.
        window_starts: first sample of each window at 16 kHz, from the beginning of the part that was read.
        notes: what was odd about the file, one line each.
        read_seconds: time in seconds that reading took.

    Source: docs/architecture.md section 13.
    """

    frames: Any = None  # any array that torch.as_tensor takes: this file imports neither NumPy nor torch
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
        """{"used": [...], "absent": [...]} of frames, face, audio and subtitle. Frames bring the face."""
        present = {
            "frames": self.frames is not None,
            "face": self.frames is not None,
            "audio": self.audio is not None,
            "subtitle": bool(self.subtitle),
        }
        return {
            "used": [name for name, is_present in present.items() if is_present],
            "absent": [name for name, is_present in present.items() if not is_present],
        }
