"""The corpus, decoded once into memory-mapped arrays of frames, sound windows and action units."""

import json
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...config import FRAME_SIZE, FRAMES, WINDOW_SAMPLES, WINDOWS
from ...data.clips import read_sample
from ...data.record import Sample
from ...data.synthetic import faces
from ...data.synthetic.plan import Plan, plans
from ...data.synthetic.render import units
from ...media.clip import Clip
from ...tasks import EMOTIONS

PARTS = ("train", "test", "voices")
_FILES = {"train": ("video", "mp4"), "test": ("test_video", "mp4"), "voices": ("audio", "wav")}
_SHAPES = {
    "frames": (np.uint8, (FRAMES, 3, FRAME_SIZE, FRAME_SIZE)),
    "sound": (np.float32, (WINDOWS, WINDOW_SAMPLES)),
    "units": (np.float32, (FRAMES, len(faces.NAMES))),
}


@dataclass(frozen=True)
class Part:
    """One part of the corpus, as `read_clip` returns its clips.

    Attributes:
        plans: the clips.
        sound: float32 [N,8,32000].
        frames: uint8 [N,8,3,224,224], None for voices without pictures.
        units: strengths of the action units in every frame, float32 [N,8,units], None for voices.
    """

    plans: list[Plan]
    sound: np.ndarray
    frames: np.ndarray | None
    units: np.ndarray | None

    def labels(self, modality: str) -> np.ndarray:
        """The emotion that a modality shows, as a number of EMOTIONS [N]."""
        return np.array([EMOTIONS.index(plan.shown[modality]) for plan in self.plans])

    def clip(self, index: int) -> Clip:
        """A clip with its words."""
        frames = None if self.frames is None else np.array(self.frames[index])
        words = self.plans[index].spoken.text
        return Clip(frames=frames, audio=np.array(self.sound[index]), subtitle=words)


def file_of(corpus: Path, part: str, plan: Plan) -> Path:
    """The media file of a clip."""
    folder, ending = _FILES[part]
    return corpus / folder / f"{plan.name}.{ending}"


def write_arrays(corpus: Path, out: Path, seed: int, count: int, test: int) -> None:
    """Decode a corpus into a folder.

    Args:
        corpus: the corpus of this seed and these counts.
        out: folder, which must not exist.
        seed, count, test: see `plan.plans`.
    """
    out.mkdir(parents=True)
    jobs = []
    for part, part_plans in zip(PARTS, plans(seed, count, test), strict=True):
        for name in ("sound",) if part == "voices" else _SHAPES:
            dtype, shape = _SHAPES[name]
            file = out / f"{part}_{name}.npy"
            np.lib.format.open_memmap(file, "w+", dtype, (len(part_plans), *shape)).flush()
        jobs += [(corpus, out, part, i, plan) for i, plan in enumerate(part_plans)]
    processes = min(16, len(os.sched_getaffinity(0)))  # each has as many threads as there are cores
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for _ in pool.imap_unordered(_decode, jobs, chunksize=16):
            pass
    (out / "plan.json").write_text(json.dumps({"seed": seed, "count": count, "test": test}) + "\n")


def _decode(job: tuple[Path, Path, str, int, Plan]) -> None:
    """Decode one clip into its row of the arrays."""
    corpus, out, part, index, plan = job
    file = file_of(corpus, part, plan)
    is_voice = part == "voices"
    video = None if is_voice else file
    sample = Sample(plan.name, "synthetic", "mer", "", "", None, video=video, audio=file)
    modalities = "audioonly" if is_voice else "multiface_audio_face_frame_text"
    clip = read_sample(sample, modalities, trusted=True)
    values = {"sound": clip.audio}
    if not is_voice:
        strengths = units(plan)
        frame_numbers = np.round(np.array(clip.frame_times) * faces.RATE).astype(int)
        values["frames"] = clip.frames
        values["units"] = strengths[np.clip(frame_numbers, 0, len(strengths) - 1)]
    for name, value in values.items():
        np.lib.format.open_memmap(out / f"{part}_{name}.npy", "r+")[index] = value


def read_arrays(out: Path, parts: Sequence[str] = PARTS) -> dict[str, Part]:
    """Map parts of what `write_arrays` wrote."""
    counts = json.loads((out / "plan.json").read_text())
    all_plans = plans(counts["seed"], counts["count"], counts["test"])
    mapped = {}
    for part, part_plans in zip(PARTS, all_plans, strict=True):
        if part in parts:
            arrays: dict[str, Any] = {name: _map(out / f"{part}_{name}.npy") for name in _SHAPES}
            mapped[part] = Part(part_plans, **arrays)
    return mapped


def _map(file: Path) -> np.ndarray | None:
    return np.load(file, mmap_mode="r") if file.is_file() else None
