"""Correctness on the GPU. Nothing is timed yet, so that all of it runs at once."""

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
    """The kernels' test suite: error rule, gradients, opcheck, fullgraph, graphs, streams, sm_89 machine
    code.
    """
    arguments = [sys.executable, "-m", "pytest", "tests/ops", "-p", "no:cacheprovider", "--tb=short"]
    arguments += ["--ignore", "tests/ops/test_native.py"]  # the C++ kernels, which see no GPU
    if find_spec("xdist"):  # nearly all of the time goes into compiling kernels
        arguments += ["-n", str(max((os.cpu_count() or 1) - 2, 1))]
    status, output = command(arguments, 0.7 * run.left(), TORCHINDUCTOR_COMPILE_THREADS="1")
    return {"step": "tests", "name": "tests/ops", "ok": status == 0, **counts(output), **_why(status, output)}


def counts(output: str) -> dict[str, int]:
    """pytest's last line as numbers."""
    last = next(
        (line for line in reversed(output.splitlines()) if re.search(r"\d+ \w+.* in [\d.]+s", line)), ""
    )
    found = {name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    return dict.fromkeys(("passed", "failed", "skipped"), 0) | found


def smoke() -> None:
    """Every op once at small shapes with masks of every kind, and once over more frames than fit on chip."""
    from common.cases import SMALL, cases

    for dtype, T in ((torch.float32, 5), (torch.float16, 5), (torch.bfloat16, 5), (torch.bfloat16, 70)):
        for case in cases(2, dtype, replace(SMALL, T=T)):
            case.functions["ours"](*case.inputs)
    torch.cuda.synchronize()


def plain_smoke(run: Run) -> Row:
    """The same without a sanitizer: it has to run, and leaves its kernels compiled."""
    status, output = command(itself("--smoke"), run.left())
    return {"step": "sanitizer", "name": "none", "ok": status == 0, **_why(status, output)}


def sanitizer(run: Run, kind: str) -> Row:
    """compute-sanitizer over `smoke`.

    Every tensor has an allocation of its own, so that overruns are seen.
    """
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
    """model.encode, fast against the reference, on clips of random frames and sound, together and one alone.

    The error rule of the tests: against a reference of higher precision (fp64 for fp32, fp32 for bf16) a
        stream of the
    fast model may err twice as much as that of the reference in the same dtype, plus one ulp of the peak. In
    fp32, where all err by a few ulps and chance decides which stream is lucky, the reference's worst stream
    sets the limit."""
    torch.backends.cudnn.allow_tf32 = False  # convolutions of the fp32 reference are exact then
    clips = [random_clip(seed) for seed in range(4)]
    for name, dtype in (("demo", "float32"), ("demo", "bfloat16"), ("nano-emox-2.2b", "bfloat16")):
        source = "demo" if name == "demo" else run.bundle
        exact_model = run.load(source, fast=False, dtype="float32")
        if dtype == "float32":
            exact_model = exact_model.double()
        models = exact_model, *(run.load(source, fast=fast, dtype=dtype) for fast in (False, True))
        for batch, said in ((clips, ""), (clips[:1], " alone")):
            exact, low, got = (replayed(model, batch) for model in models)
            own = {stream: apart(low[stream], exact[stream]) for stream in exact}
            ulp, worst = torch.finfo(getattr(torch, dtype)).eps, max(own.values())
            for stream in exact:
                limit = 2 * (worst if dtype == "float32" else own[stream]) + ulp
                error = apart(got[stream], exact[stream])
                alike = got[stream].shape == low[stream].shape and got[stream].dtype == low[stream].dtype
                yield {
                    "step": "encode",
                    "name": f"{name} {dtype} {stream}{said}",
                    "ok": alike and error <= limit,
                    "error": error,
                    "reference_error": own[stream],
                    "limit": limit,
                    "fast_from_slow": apart(got[stream], low[stream]),
                }  # (a NaN is not ok)
        del exact_model, models


def replayed(model: Any, batch: list[Any]) -> dict[str, Tensor]:
    """Streams of the third call, which replays a graph where there is one."""
    return streams([model.encode(batch) for _ in range(3)][-1])


def random_clip(seed: int) -> Any:
    from nanoemox.media import Clip

    random = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (8, 3, 224, 224), generator=random, dtype=torch.uint8)
    audio = 0.1 * torch.randn(8, 32000, generator=random)
    return Clip(frames=frames, audio=audio - audio.mean(1, keepdim=True))


def streams(encoded: Any) -> dict[str, Tensor]:
    """Every tensor of an Encoded by name."""
    named = {
        field.name: getattr(encoded, field.name) for field in fields(encoded) if field.name != "features"
    }
    named |= {f"features {name}": tensor for name, tensor in encoded.features.items()}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def apart(got: Tensor, want: Tensor) -> float:
    """max|got - want| / max|want|."""
    return ((got.double() - want.double()).abs().max() / want.double().abs().max()).item()


def correctness(run: Run) -> Iterator[Row]:
    """All of it, side by side; rows as they come."""
    with ThreadPoolExecutor() as pool:
        suite = pool.submit(tests, run)
        plain = pool.submit(plain_smoke, run)
        yield from guarded(encode, run)
        yield plain.result()
        watched = [pool.submit(sanitizer, run, kind) for kind in ("memcheck", "racecheck")]
        for job in (*watched, suite):
            yield job.result()
