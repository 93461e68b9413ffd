"""The corpus folder: written under a temporary name by several processes, and renamed when it is whole."""

import errno
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ...errors import UsageError
from . import speech
from .annotations import write_annotations
from .plan import MOST, Plan, plans
from .render import write_clip, write_voice

_BYTES_A_CLIP = 60_000  # of a clip and its half of a voice


def write_corpus(
    out: str | os.PathLike,
    *,
    seed: int = 0,
    n: int = 1400,
    test: int | None = None,
    workers: int | None = None,
    audible: bool = False,
) -> float:
    """Write the synthetic affect corpus; the same seed and counts give the same bytes. Returns the seconds it took.

    Args:
        out: a folder that does not exist or is empty. It gets `video/` (n clips), `test_video/` (clips of other
            people), `audio/` (n / 2 voices alone), the annotation files of annotations.py, and the manifests.
        test: clips of the test part, default a fifth of n.
        workers: processes, default one a core.
        audible: a speech synthesiser says the words (speech.py); the bytes then depend on its version too.

    Raises:
        UsageError: a count that is not allowed, a folder that holds something, or no speech synthesiser.
        ValueError: no room on the disk, or the speech synthesiser fails; nothing stays behind.
    """
    began, out = time.perf_counter(), Path(out)
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
    with _whole(out, _BYTES_A_CLIP * (n + test)) as folder:
        for name in ("video", "test_video", "audio"):
            (folder / name).mkdir()
        jobs = [(p, folder / "video" / f"{p.name}.mp4") for p in train_plans]
        jobs += [(p, folder / "test_video" / f"{p.name}.mp4") for p in test_plans]
        jobs += [(p, folder / "audio" / f"{p.name}.wav") for p in voices]
        apexes = dict(_run(jobs, workers or len(os.sched_getaffinity(0)), audible))
        write_annotations(folder, train_plans, test_plans, voices, apexes)
    return time.perf_counter() - began


def _run(jobs: list[tuple[Plan, Path]], workers: int, audible: bool) -> Iterator[tuple[str, int]]:
    write = partial(_write, audible=audible)
    if workers == 1:
        yield from map(write, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers, _one_thread) as pool:
        yield from pool.imap_unordered(write, jobs, chunksize=8)


def _one_thread() -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool


def _write(job: tuple[Plan, Path], audible: bool) -> tuple[str, int]:
    p, path = job
    if path.suffix == ".wav":
        write_voice(p, path, audible)
        return p.name, 0
    return p.name, write_clip(p, path, audible)


@contextmanager
def _whole(out: Path, needs: int) -> Iterator[Path]:
    """A folder beside `out` that takes its name when the block has ended well, and is removed otherwise."""
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(parent).free) < needs:
        raise ValueError(
            f"{out}: needs about {needs >> 20} MiB of disk, {free >> 20} MiB are free; make room or lower --n"
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
            raise ValueError(f"{out}: the disk is full; make room or lower --n (nothing was kept)") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
