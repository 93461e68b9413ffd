"""The corpus decoded once: frames, windows of sound and action units as arrays on disk, to be mapped."""

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
_SHAPES = {
    "frames": (np.uint8, (FRAMES, 3, FRAME_SIZE, FRAME_SIZE)),
    "sound": (np.float32, (WINDOWS, WINDOW_SAMPLES)),
    "units": (np.float32, (FRAMES, len(faces.NAMES))),
}


@dataclass(frozen=True)
class Part:
    """One part of the corpus. frames uint8 [N,8,3,224,224] and units [N,8,units] (None for voices alone), sound
    float32 [N,8,32000]: what `read_clip` gives."""

    plans: list[Plan]
    sound: np.ndarray
    frames: np.ndarray | None
    units: np.ndarray | None

    def labels(self, modality: str) -> np.ndarray:
        """What face, voice or words show: numbers of EMOTIONS [N]."""
        return np.array([EMOTIONS.index(p.shown[modality]) for p in self.plans])

    def clip(self, index: int) -> Clip:
        """With its words."""
        held = None if self.frames is None else np.array(self.frames[index])
        return Clip(frames=held, audio=np.array(self.sound[index]), subtitle=self.plans[index].spoken.text)


def file_of(corpus: Path, part: str, plan: Plan) -> Path:
    folder, ending = {"train": ("video", "mp4"), "test": ("test_video", "mp4"), "voices": ("audio", "wav")}[
        part
    ]
    return corpus / folder / f"{plan.name}.{ending}"


def write_arrays(corpus: Path, out: Path, seed: int, count: int, test: int) -> None:
    """Decodes the corpus of these counts into `out`, with a process a core, of up to 16: each has a thread a core."""
    out.mkdir(parents=True)
    jobs = []
    for part, chosen in zip(PARTS, plans(seed, count, test), strict=True):
        for name in ("sound",) if part == "voices" else _SHAPES:
            dtype, shape = _SHAPES[name]
            np.lib.format.open_memmap(out / f"{part}_{name}.npy", "w+", dtype, (len(chosen), *shape)).flush()
        jobs += [(corpus, out, part, i, p) for i, p in enumerate(chosen)]
    with multiprocessing.get_context("spawn").Pool(min(16, len(os.sched_getaffinity(0)))) as pool:
        for _ in pool.imap_unordered(_decode, jobs, chunksize=16):
            pass
    (out / "plan.json").write_text(json.dumps({"seed": seed, "count": count, "test": test}) + "\n")


def _decode(job: tuple[Path, Path, str, int, Plan]) -> None:
    corpus, out, part, index, plan = job
    file = file_of(corpus, part, plan)
    alone = part == "voices"
    sample = Sample(plan.name, "synthetic", "mer", "", "", None, video=None if alone else file, audio=file)
    clip = read_sample(sample, "audioonly" if alone else "multiface_audio_face_frame_text", trusted=True)
    values = {"sound": clip.audio}
    if not alone:
        acted = units(plan)
        moments = np.clip(np.round(np.array(clip.frame_times) * faces.RATE).astype(int), 0, len(acted) - 1)
        values |= {"frames": clip.frames, "units": acted[moments]}
    for name, value in values.items():
        np.lib.format.open_memmap(out / f"{part}_{name}.npy", "r+")[index] = value


def read_arrays(out: Path, parts: Sequence[str] = PARTS) -> dict[str, Part]:
    """Parts of what `write_arrays` wrote, mapped."""
    given = json.loads((out / "plan.json").read_text())
    found = {}
    for part, chosen in zip(PARTS, plans(given["seed"], given["count"], given["test"]), strict=True):
        if part in parts:
            held: dict[str, Any] = {
                name: np.load(file, mmap_mode="r") if (file := out / f"{part}_{name}.npy").is_file() else None
                for name in _SHAPES
            }
            found[part] = Part(chosen, held["sound"], held["frames"], held["units"])
    return found
