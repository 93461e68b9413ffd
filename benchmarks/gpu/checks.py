"""Correctness on the GPU. Nothing is timed here, so the checks run at the same time."""

import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from .run import Row, Run, command, guarded, itself, tool

_TAIL = 4000  # characters of a failed command's output that are kept


def tests(run: Run) -> Row:
    """The test suite of the kernels, tests/ops."""
    arguments = [sys.executable, "-m", "pytest", "tests/ops", "-p", "no:cacheprovider", "--tb=short"]
    arguments += ["--ignore", "tests/ops/test_native.py"]  # the C++ kernels, which run on the CPU
    if find_spec("xdist"):  # compiling kernels takes most of the time
        arguments += ["-n", str(max((os.cpu_count() or 1) - 2, 1))]
    status, output = command(arguments, 0.7 * run.left(), TORCHINDUCTOR_COMPILE_THREADS="1")
    return {"step": "tests", "name": "tests/ops", "ok": status == 0, **counts(output), **_why(status, output)}


def counts(output: str) -> dict[str, int]:
    """The numbers of pytest's last line: "passed", "failed", "skipped", and "error" if there are any."""
    last = next(
        (line for line in reversed(output.splitlines()) if re.search(r"\d+ \w+.* in [\d.]+s", line)), ""
    )
    numbers = re.findall(r"(\d+) (passed|failed|skipped|error)", last)
    return dict.fromkeys(("passed", "failed", "skipped"), 0) | {name: int(n) for n, name in numbers}


def smoke() -> None:
    """Every op once at small, odd sizes, and in bf16 also over more frames than fit on chip."""
    from common.cases import SMALL, cases

    for dtype, T in ((torch.float32, 5), (torch.float16, 5), (torch.bfloat16, 5), (torch.bfloat16, 70)):
        for case in cases(2, dtype, replace(SMALL, T=T)):
            case.functions["ours"](*case.inputs)
    torch.cuda.synchronize()


def plain_smoke(run: Run) -> Row:
    """`smoke` without a sanitizer: it must run, and Triton's cache keeps the compiled kernels."""
    status, output = command(itself("--smoke"), run.left())
    return {"step": "sanitizer", "name": "none", "ok": status == 0, **_why(status, output)}


def sanitizer(run: Run, kind: str) -> Row:
    """compute-sanitizer over `smoke`. Each tensor is allocated separately, so that it detects overruns."""
    row: Row = {"step": "sanitizer", "name": kind}
    path = tool("compute-sanitizer")
    if path is None:
        return {**row, "left_out": "no compute-sanitizer here"}
    arguments = [path, "--tool", kind, "--error-exitcode", "9", *itself("--smoke")]
    status, output = command(arguments, 0.7 * run.left(), PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    if status and (
        reason := re.search(r"(?i).*(device not supported|failed to initialize|not permitted).*", output)
    ):
        return {**row, "left_out": reason[0].strip()}
    return {**row, "ok": status == 0, **_why(status, output)}


def _why(status: int, output: str) -> Row:
    return {} if status == 0 else {"status": status, "output": output[-_TAIL:]}


def encode(run: Run) -> Iterator[Row]:
    """model.encode, fast against the reference, on random clips: four in one batch, and one alone.

    The error rule is that of the tests. Against a reference of higher precision (fp64 for fp32, fp32 for
    bf16), a stream of the fast model may have twice the error of the same stream of the reference in the same
    dtype, plus one ulp of the peak. In fp32 all errors are a few ulps, so the reference's worst stream sets
    the limit for all.
    """
    torch.backends.cudnn.allow_tf32 = False  # convolutions of the fp32 reference are exact then
    clips = [random_clip(seed) for seed in range(4)]
    for name, dtype in (("demo", "float32"), ("demo", "bfloat16"), ("nano-emox-2.2b", "bfloat16")):
        source = "demo" if name == "demo" else run.bundle
        exact_model = run.load(source, fast=False, dtype="float32")
        if dtype == "float32":
            exact_model = exact_model.double()
        models = exact_model, *(run.load(source, fast=fast, dtype=dtype) for fast in (False, True))
        for batch, suffix in ((clips, ""), (clips[:1], " alone")):
            exact, low, got = (replayed(model, batch) for model in models)
            own = {stream: relative_error(low[stream], exact[stream]) for stream in exact}
            ulp, worst = torch.finfo(getattr(torch, dtype)).eps, max(own.values())
            for stream in exact:
                limit = 2 * (worst if dtype == "float32" else own[stream]) + ulp
                error = relative_error(got[stream], exact[stream])
                same_shape = got[stream].shape == low[stream].shape
                same_dtype = got[stream].dtype == low[stream].dtype
                yield {
                    "step": "encode",
                    "name": f"{name} {dtype} {stream}{suffix}",
                    "ok": same_shape and same_dtype and error <= limit,  # False for a NaN
                    "error": error,
                    "reference_error": own[stream],
                    "limit": limit,
                    "fast_from_slow": relative_error(got[stream], low[stream]),
                }
        del exact_model, models


def replayed(model: Any, batch: list[Any]) -> dict[str, Tensor]:
    """Streams of the third call, which replays a CUDA graph if the model captured one."""
    return streams([model.encode(batch) for _ in range(3)][-1])


def random_clip(seed: int) -> Any:
    """A `nanoemox.media.Clip` of eight random frames and windows, without a subtitle."""
    from nanoemox.media import Clip

    random = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (8, 3, 224, 224), generator=random, dtype=torch.uint8)
    audio = 0.1 * torch.randn(8, 32000, generator=random)
    return Clip(frames=frames, audio=audio - audio.mean(1, keepdim=True))


def streams(encoded: Any) -> dict[str, Tensor]:
    """Name -> tensor of a `nanoemox.Encoded`."""
    named = {
        field.name: getattr(encoded, field.name) for field in fields(encoded) if field.name != "features"
    }
    named |= {f"features {name}": tensor for name, tensor in encoded.features.items()}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def relative_error(got: Tensor, want: Tensor) -> float:
    """max|got - want| / max|want|."""
    return ((got.double() - want.double()).abs().max() / want.double().abs().max()).item()


def correctness(run: Run) -> Iterator[Row]:
    """All checks, several at a time."""
    with ThreadPoolExecutor() as pool:
        suite = pool.submit(tests, run)
        plain = pool.submit(plain_smoke, run)
        yield from guarded(encode, run)
        yield plain.result()
        sanitizers = [pool.submit(sanitizer, run, kind) for kind in ("memcheck", "racecheck")]
        for job in (*sanitizers, suite):
            yield job.result()
