"""Products by cuBLASLt's public C interface, the library that PyTorch has loaded: on some of a GPU's multiprocessors.

PyTorch's own products take the whole GPU, or what a private global setting leaves them; branches of a CUDA graph that
run side by side want a share each. Which algorithm serves a kind of product is the first that the library proposes, or
one that configs/<GPU>.cublaslt.json holds for this version of the library, or one that `tune` has found.

Nothing here synchronises, allocates behind PyTorch's back or times anything but `tune`: products may be captured.
"""

import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _cublas_lt, _tuning
from ._cublas_lt import ALIGNED, TYPES, Found, Kind, Plan, version

why_not = _cublas_lt.why_not  # "" where the library is
_here = threading.local()  # .sms: what `multiprocessors` has set for this thread
_plans: dict[Kind, Plan] = {}


def serves(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether `linear` takes these: contiguous, of one 16-bit dtype, on one GPU, widths in multiples of 8, aligned."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return (
        _cublas_lt.library is not None
        and x.device.type == "cuda"
        and x.dtype in TYPES
        and weight.ndim == 2
        and x.ndim > 0
        and x.shape[-1] == weight.shape[1]
        and min(weight.shape) > 0
        and not weight.shape[0] % 8
        and not weight.shape[1] % 8
        and (bias is None or tuple(bias.shape) == (weight.shape[0],))
        and all(
            t.dtype == x.dtype and t.device == x.device and t.is_contiguous() and not t.data_ptr() % ALIGNED
            for t in tensors
        )
    )


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None, sms: int | None = None
) -> Tensor:
    """x W^T + bias, summed in fp32. No gradient.

    Args:
        x: [...,K]; weight: [N,K]; bias: [N] or None; see `serves`.
        out: [...,N], contiguous, where the result goes; default a new one.
        sms: multiprocessors that the product is to take, 0: all; default what `multiprocessors` has set.

    Raises:
        RuntimeError: no library, or one that refuses. ValueError: tensors that it does not take.
    """
    out = _checked(x, weight, bias, out)
    if out.numel() == 0:
        return out
    with _tuning.on_device_of(x):
        plan = _plan(x, weight, bias, out, sms)
        found = plan.found
        # From PyTorch's allocator: it is the stream's own, and within a capture the graph's.
        workspace = _workspace(found.workspace, x) if found.workspace else None
        plan.run(x, weight, bias, out, workspace, found)
    return out


def _workspace(size: int, like: Tensor) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=like.device)


def _checked(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    if _cublas_lt.library is None:
        raise RuntimeError(f"no cuBLASLt: {why_not}")
    if not serves(x, weight, bias):
        given = [f"{t.dtype} {list(t.shape)} {t.device}" for t in (x, weight, bias) if t is not None]
        raise ValueError(
            "want x [..., K], weight [N, K] and bias [N] contiguous in one 16-bit dtype on one GPU, N and K multiples "
            f"of 8, aligned to {ALIGNED} bytes; got {', '.join(given)}"
        )
    shape = (*x.shape[:-1], weight.shape[0])
    if out is None:
        return torch.empty(shape, dtype=x.dtype, device=x.device)
    alike = tuple(out.shape) == shape and out.dtype == x.dtype and out.device == x.device
    if not alike or not out.is_contiguous() or out.data_ptr() % ALIGNED:
        raise ValueError(f"want out {list(shape)}, contiguous {x.dtype}, got {out.dtype} {list(out.shape)}")
    return out


def _plan(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, sms: int | None) -> Plan:
    places = x.data_ptr() | weight.data_ptr() | out.data_ptr() | (0 if bias is None else bias.data_ptr())
    N, K = weight.shape
    kind = Kind(
        x.numel() // K, N, K, x.dtype, bias is not None, share() if sms is None else sms,
        min(places & -places, 256), x.device.index,
    )  # fmt: skip
    plan = _plans.get(kind)
    if plan is None:
        plan = _plans.setdefault(kind, Plan(kind, 0 if bias is None else bias.data_ptr()))
    return plan


def share() -> int:
    """Multiprocessors that this thread's products take, 0: all."""
    return getattr(_here, "sms", 0)


@contextmanager
def multiprocessors(sms: int) -> Iterator[None]:
    """Products that this thread calls within take so many multiprocessors, 0: all."""
    before = share()
    _here.sms = sms
    try:
        yield
    finally:
        _here.sms = before


def is_tuned(x: Tensor, weight: Tensor, bias: Tensor | None, sms: int | None = None) -> bool:
    """Whether `tune` has chosen for products like this one; tensors that `linear` takes."""
    return _plan(x, weight, bias, x, sms).tuned


def chosen() -> dict[str, Any]:
    """What `tune` has found, as `config_path` wants it."""
    plans = {p.kind.name(): bytes(p.found.algorithm).hex() for p in _plans.values() if p.tuned}
    return {"version": version(), "algorithms": plans}


class Tuned(NamedTuple):
    """Microseconds of a product, weights rotated: by the library's first proposal and by the best, and which it is."""

    first: float
    best: float
    rank: int
    tried: int


def tune(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, sms: int | None = None, proposals: int = 24
) -> Tuned:
    """Time what the library proposes for such a product, for all of the GPU too, and keep the best from now on.

    Those that miss PyTorch's result by more than 2 % of the peak, or give two results, are left out. Not within a
    capture: it synchronises.
    """
    out = _checked(x, weight, bias, None)
    with torch.cuda.device(x.device):
        plan = _plan(x, weight, bias, out, sms)
        candidates = _candidates(plan, bias, proposals)
        want = F.linear(x, weight, bias).float()
        # As in a model, whose next layer's weights are not in the cache.
        weights = [weight, *(weight.clone() for _ in range(19))]
        space = _workspace(max(max(found.workspace for found in candidates), 1), x)
        other, limit, us, calls = torch.empty_like(out), 0.02 * want.abs().max().item(), {}, 20
        for rank, found in enumerate(candidates):

            def run(w: Tensor, to: Tensor = out, found: Found = found) -> None:
                plan.run(x, w, bias, to, space if found.workspace else None, found)

            try:
                run(weight)
                run(weight, other)
            except RuntimeError:
                continue  # the check took it, the launch did not: no candidate
            if not torch.equal(out, other) or not (out.float() - want).abs().max().item() <= limit:
                continue
            us[rank] = _device_us(run, weights[:calls])
            calls = min(calls, max(5, int(1000 / us[rank])))
        if not us:
            raise RuntimeError(f"cuBLASLt: no algorithm gives the right result for {plan.kind}")
        best = min(us, key=lambda rank: us[rank])
        plan.found, plan.tuned = candidates[best], True
        return Tuned(us.get(0, us[best]), us[best], best, len(us))


def _candidates(plan: Plan, bias: Tensor | None, proposals: int) -> list[Found]:
    """Its own proposals, and those for more and fewer multiprocessors and for full tiles of rows, where they serve."""
    found = plan.proposed(proposals)
    seen = {bytes(f.algorithm) for f in found}
    kind, place = plan.kind, 0 if bias is None else bias.data_ptr()
    for M, sms in ((kind.M, 0), (kind.M, 66), (kind.M // 128 * 128, kind.sms)):
        if M < 1 or (M, sms) == (kind.M, kind.sms):
            continue
        for proposal in Plan(kind._replace(M=M, sms=sms), place).proposed(proposals // 2):
            checked = None if bytes(proposal.algorithm) in seen else plan.checked(proposal.algorithm)
            if checked is not None:
                seen.add(bytes(proposal.algorithm))
                found.append(checked)
    return found


def _device_us(run: Callable[[Tensor], None], weights: list[Tensor]) -> float:
    """Median over replays of a graph of a call a weight."""
    here, stream, graph = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for weight in weights:
                run(weight)
        finally:
            graph.capture_end()
        graph.replay()
        taken = []
        for _ in range(5):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            graph.replay()
            last.record()
            taken.append((first, last))
        stream.synchronize()
    return statistics.median(first.elapsed_time(last) for first, last in taken) * 1e3 / len(weights)
