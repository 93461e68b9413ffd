"""The second pass over the sound: its windows at 16 kHz (docs/architecture.md section 13)."""

from dataclasses import dataclass

import numpy as np

from ..config import SAMPLE_RATE, WINDOW_SAMPLES
from .container import Refused, mono
from .positions import window_starts
from .resample import Resampler
from .source import Source
from .survey import Survey


@dataclass
class Sound:
    """Windows of the part, each minus its mean."""

    windows: np.ndarray  # float32 [8,32000]
    starts: list[int]  # first sample of each window at 16 kHz


def read_sound(source: Source, survey: Survey) -> Sound | None:
    """The windows of the part, or None if it has no sound. Only the samples that they need are kept."""
    if not survey.samples:
        return None
    resampler = None if survey.rate == SAMPLE_RATE else Resampler(survey.rate, SAMPLE_RATE)
    total = resampler.length(survey.samples) if resampler else survey.samples
    starts = window_starts(total)
    stops = [min(start + WINDOW_SAMPLES, total) for start in starts]
    spans = list(zip(starts, stops, strict=True))
    if resampler:
        spans = [resampler.needs(start, stop) for start, stop in spans]
    pieces = _read_spans(source, survey, spans)
    windows = np.zeros((len(starts), WINDOW_SAMPLES), np.float32)
    for window, piece, (low, _), start, stop in zip(windows, pieces, spans, starts, stops, strict=True):
        window[: stop - start] = resampler.run(piece, low, start, stop) if resampler else piece
    if not np.isfinite(windows).all():
        raise Refused("the sound holds samples that are not numbers; encode it again")
    means = windows.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
    return Sound(windows - means, starts)


def _read_spans(source: Source, survey: Survey, spans: list[tuple[int, int]]) -> list[np.ndarray]:
    """Samples [low, high) of the part at its own rate, mono float32; zeros beyond its ends."""
    pieces = [np.zeros(high - low, np.float32) for low, high in spans]
    position = 0
    source.damaged["audio"] = 0
    with source.open() as streams:
        for packet in source.packets(streams, streams.audio):
            for frame in source.decode(packet, "audio"):
                first, last = source.samples_inside(frame, survey.rate, streams.origin)
                if first == last:
                    continue
                wave = mono(frame)[first:last]
                for piece, (low, high) in zip(pieces, spans, strict=True):
                    begin, stop = max(low, position), min(high, position + len(wave))
                    if begin < stop:
                        piece[begin - low : stop - low] = wave[begin - position : stop - position]
                position += len(wave)
    return pieces
