"""Times on the GPU: ops and encoders at published size in bf16, beside eager and compiled PyTorch."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from common import clocks, roofline
from common.cases import Case, cases
from torch import Tensor, nn

from .run import Row, Run

BATCHES = (1, 8, 64)
ENCODERS: dict[str, tuple[Callable[[int], int], str]] = {
    "vision": (roofline.clip, "frames"),
    "audio": (roofline.hubert, "audio"),
    "face": (roofline.swin, "frames"),
}
ENCODER_BATCHES = (1, 8)
_RESERVE = 150  # seconds that the ops leave to the encoders and ncu
# How each time was measured; stored with the results.
METHOD = {
    "call_us, ms": "wall clock of a call with one synchronisation behind it, median",
    "device_us": "events around a CUDA graph of one call, L2 overwritten before each replay, median",
    "device_hot_us": "events around a CUDA graph of ten calls, over ten, median",
    "smallest_graph_us": "device_us of a graph of one kernel on one number: the least that this clock shows",
    "share": "floor over device_us; floor: the larger of bytes over bandwidth and FLOP over matmul rate",
}


def ceilings(run: Run) -> Iterator[Row]:
    """The ceilings of this GPU, and the shortest time that the clock shows."""
    run.ceilings = clocks.ceilings()
    number = torch.zeros(1, device="cuda")
    clocks.warm(lambda: number.add_(1))
    smallest = clocks.GraphClock().cold(lambda: number.add_(1)) * 1e6
    row: Row = {
        "step": "ceilings",
        "name": "copy, bf16 matmul",
        "smallest_graph_us": smallest,
        "method": METHOD,
    }
    yield {**row, **run.ceilings}


def ops(run: Run) -> Iterator[Row]:
    """A row per op and batch."""
    clock = clocks.GraphClock()
    for B in BATCHES:
        torch.compiler.reset()
        for case in cases(B, torch.bfloat16):
            yield _op(run, case, B, clock)
            torch.cuda.empty_cache()


@torch.inference_mode()
def _op(run: Run, case: Case, B: int, clock: clocks.GraphClock) -> Row:
    row: Row = {
        "step": "op",
        "name": case.name,
        "batch": B,
        "ok": False,
        "moved": case.moved,
        "flops": case.flops,
    }
    row |= {"floor_us": roofline.floor(case.flops, case.moved, run.ceilings) * 1e6}
    row |= {"call_us": {}, "device_us": {}, "device_hot_us": {}, "errors": {}}
    pristine = [t.clone() for t in case.inputs]  # timed calls update their inputs in place
    want = case.functions["eager"](*(t.clone() for t in pristine))
    for name, function in case.functions.items():
        if name != "ours" and run.left() < _RESERVE:
            row["errors"][name] = "no time left"
            continue
        try:
            correct = close(function(*(t.clone() for t in pristine)), want)
            if name == "ours":
                row["ok"] = correct
            if not correct:
                row["errors"][name] = "wrong result"
            call = partial(function, *case.inputs)
            clocks.warm(call)
            row["call_us"][name] = clocks.wall(call) * 1e6
            row["device_us"][name] = clock.cold(call) * 1e6
            row["device_hot_us"][name] = clock.hot(call) * 1e6
        # The run goes on if an implementation cannot be timed.
        except Exception as error:
            row["errors"][name] = _message(error)
    if "ours" in row["device_us"]:
        row["share"] = row["floor_us"] / row["device_us"]["ours"]
    return row


def close(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> bool:
    """Whether all tensors agree within 2 % of the peak, which every correct bf16 result does.

    The test suite applies the stricter error rule.
    """
    pairs = [(g.float(), w.float()) for g, w in zip(got, want, strict=True)]
    return all(bool((g - w).abs().max() <= 0.02 * w.abs().max()) for g, w in pairs)


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


def clips(B: int) -> dict[str, Tensor]:
    """Random "frames" [B,8,3,224,224] in uint8 and "audio" [B,8,32000] in fp32, on the GPU."""
    frames = torch.randint(0, 256, (B, 8, 3, 224, 224), device="cuda", dtype=torch.uint8)
    return {"frames": frames, "audio": 0.1 * torch.randn(B, 8, 32000, device="cuda")}


def encoders(run: Run) -> Iterator[Row]:
    """A row per encoder and batch, and one per batch for all streams of `encode`."""
    if not run.ceilings:
        yield from ceilings(run)
    for B in ENCODER_BATCHES:
        inputs = clips(B)
        floors = []
        for name, (flops, stream) in ENCODERS.items():
            slow, fast, x = getattr(run.slow, name), getattr(run.fast, name), inputs[stream]
            floors.append(roofline.floor(flops(B), nbytes(fast), run.ceilings))
            torch.compiler.reset()
            calls: dict[str, clocks.Call] = {
                "eager": partial(slow, x),
                "compiled": partial(compiled(slow), x),
                "fast": partial(fast, x),
            }
            row: Row = {
                "step": "encoder",
                "name": name,
                "batch": B,
                "flops": flops(B),
                "weights": nbytes(fast),
            }
            yield _encoder(run, row, calls, floors[-1])
        small_parts = [run.fast.face_head, run.fast.video_branch, run.fast.audio_branch, run.fast.fusion]
        moved = sum(nbytes(part) for part in small_parts)
        floors.append(roofline.floor(0, moved, run.ceilings))  # their FLOP are negligible
        streams = inputs["frames"], inputs["audio"]
        calls = {
            "eager": partial(run.slow.encode_streams, *streams),
            "fast": partial(run.fast.encode_streams, *streams),
        }
        yield _encoder(run, {"step": "encoder", "name": "encode", "batch": B}, calls, sum(floors))


def compiled(encoder: nn.Module) -> Callable[..., object]:
    """The compiled encoder. Call `encoder` first: transformers then installs hooks, which break a graph."""
    return torch.compile(encoder, dynamic=False)


def nbytes(module: nn.Module) -> int:
    """Bytes of the parameters and buffers of a module."""
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


@torch.inference_mode()
def _encoder(run: Run, row: Row, calls: dict[str, clocks.Call], floor: float) -> Row:
    """Complete a row: wall time, bytes allocated beyond weights and inputs, and kernels per call."""
    row |= {"floor_ms": floor * 1e3, "ms": {}, "over_floor": {}, "peak_bytes": {}, "kernels": {}}
    row |= {"errors": {}}
    for name in [*calls, "fast graph"]:
        if name == "compiled" and run.left() < _RESERVE / 2:
            row["errors"][name] = "no time left"
            continue
        try:
            call = calls[name.removesuffix(" graph")]
            clocks.warm(call)
            if name == "fast graph":
                graphs: list[torch.cuda.CUDAGraph] = []
                row["peak_bytes"][name] = clocks.peak_memory(partial(_capture_into, graphs, call))
                call = graphs[0].replay
                clocks.warm(call)
            else:
                row["peak_bytes"][name] = clocks.peak_memory(call)
            taken = clocks.wall(call, 20)
            row["ms"][name], row["over_floor"][name] = taken * 1e3, taken / floor
            row["kernels"][name] = clocks.kernels(call)
        except Exception as error:
            row["errors"][name] = _message(error)
    return row


def _capture_into(graphs: list[torch.cuda.CUDAGraph], call: clocks.Call) -> None:
    graphs.append(clocks.capture(call))


def warm(part: str) -> None:
    """Fill PyTorch's compilation cache on disk for the timings of the ops or of an encoder.

    Several processes do so while the checks run.
    """
    if part == "ops":
        for B in BATCHES:
            torch.compiler.reset()
            for case in cases(B, torch.bfloat16):
                for name, function in case.functions.items():
                    if name.startswith("compiled"):
                        with torch.inference_mode():
                            function(*case.inputs)
    else:
        encoder = _random_encoder(part)
        for B in ENCODER_BATCHES:
            torch.compiler.reset()
            x = clips(B)[ENCODERS[part][1]]
            with torch.inference_mode():
                encoder(x)
                compiled(encoder)(x)
    torch.cuda.synchronize()


def _random_encoder(part: str, device: str = "cuda") -> nn.Module:
    """An encoder of the reference at published size, with random weights in bf16."""
    from nanoemox.config import NanoEmoXConfig
    from nanoemox.modules.audio import AudioEncoder
    from nanoemox.modules.face import FaceEncoder
    from nanoemox.modules.vision import VisionEncoder

    kinds = {"vision": VisionEncoder, "audio": AudioEncoder, "face": FaceEncoder}
    with torch.device(device):
        encoder = kinds[part](getattr(NanoEmoXConfig(), part))
    return encoder.to(torch.bfloat16).eval().requires_grad_(False)
