"""The corpus folder: written under a temporary name by several processes, and renamed when it is complete."""

import errno
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ...errors import DataError, UsageError
from . import speech
from .annotations import write_annotations
from .plan import MOST, Plan, plans
from .render import write_clip, write_voice

_BYTES_PER_CLIP = 60_000  # of a clip and its share of the voices


def write_corpus(
    out: str | os.PathLike,
    *,
    seed: int = 0,
    n: int = 1400,
    test: int | None = None,
    workers: int | None = None,
    audible: bool = False,
) -> float:
    """Write the synthetic affect corpus (docs/data.md section 9). Equal arguments give equal bytes.

    Args:
        out: a folder that does not exist or is empty. It gets `video/` (n clips), `test_video/` (clips of
            other people), `audio/` (n / 2 voices without pictures), annotation files and manifests.
        seed: start of the random numbers, not negative.
        n: number of training clips.
        test: number of test clips, by default a fifth of n.
        workers: number of processes, by default one per core.
        audible: a speech synthesiser says the words; the bytes then depend on its version too.

    Returns:
        The seconds that it took.

    Raises:
        UsageError: a count out of range, a folder that is not empty, or no speech synthesiser.
        DataError: no room on the disk, or the speech synthesiser fails; nothing is left behind.
    """
    began = time.perf_counter()
    out = Path(out)
    test = max(2, n // 5) if test is None else test
    if not (2 <= n <= MOST and 2 <= test <= MOST and seed >= 0):
        raise UsageError(
            f"n {n}, test {test}, seed {seed}: the counts must lie in 2..{MOST}, the seed not below 0"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists and is not empty; name a new folder")
    if audible:
        speech.check()
    train_plans, test_plans, voices = plans(seed, n, test)
    with _new_folder(out, _BYTES_PER_CLIP * (n + test)) as folder:
        for name in ("video", "test_video", "audio"):
            (folder / name).mkdir()
        jobs = [(plan, folder / "video" / f"{plan.name}.mp4") for plan in train_plans]
        jobs += [(plan, folder / "test_video" / f"{plan.name}.mp4") for plan in test_plans]
        jobs += [(plan, folder / "audio" / f"{plan.name}.wav") for plan in voices]
        apexes = dict(_run(jobs, workers or len(os.sched_getaffinity(0)), audible))
        write_annotations(folder, train_plans, test_plans, voices, apexes)
    return time.perf_counter() - began


def _run(jobs: list[tuple[Plan, Path]], workers: int, audible: bool) -> Iterator[tuple[str, int]]:
    """Write every (plan, file), in any order; yields (name, frame of the apex, 0 for a voice)."""
    write = partial(_write, audible=audible)
    if workers == 1:
        yield from map(write, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers, _ignore_interrupts) as pool:
        yield from pool.imap_unordered(write, jobs, chunksize=8)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool


def _write(job: tuple[Plan, Path], audible: bool) -> tuple[str, int]:
    plan, path = job
    if path.suffix == ".wav":
        write_voice(plan, path, audible)
        return plan.name, 0
    return plan.name, write_clip(plan, path, audible)


@contextmanager
def _new_folder(out: Path, size: int) -> Iterator[Path]:
    """A temporary folder that is renamed to `out` if the block succeeds, and removed otherwise.

    Raises DataError if less than `size` bytes are free, or the disk fills up.
    """
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < size:
        raise DataError(
            f"{out}: needs about {size >> 20} MiB of disk, {free >> 20} MiB are free; make room or lower --n"
        )
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=parent))
    try:
        folder.chmod(0o755)
        yield folder
        if out.exists():
            out.rmdir()
        folder.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"{out}: the disk is full; make room or lower --n (nothing was kept)") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
