"""Times on the GPU: the ops and the encoders at true size in bf16, each beside PyTorch's own ways."""

from collections.abc import Iterator
from functools import partial

import torch
from common import clocks as timing
from common import roofline
from common.cases import Case, cases
from torch import Tensor, nn

from .run import Row, Run

BATCHES = (1, 8, 64)
ENCODERS = {
    "vision": (roofline.clip, "frames"),
    "audio": (roofline.hubert, "audio"),
    "face": (roofline.swin, "frames"),
}
ENCODER_BATCHES = (1, 8)
_RESERVE = 150  # seconds that the ops leave to the encoders and ncu
METHOD = {
    "call_us, ms": "wall clock of a call with one synchronisation behind it, median",
    "device_us": "events around a CUDA graph of one call, L2 overwritten before each replay, median",
    "device_hot_us": "events around a CUDA graph of ten calls, over ten, median",
    "smallest_graph_us": "device_us of a graph of one kernel on one number: the least that this clock shows",
    "share": "floor over device_us; floor: the larger of bytes over bandwidth and FLOP over matmul rate",
}


def ceilings(run: Run) -> Iterator[Row]:
    run.ceilings = timing.ceilings()
    number = torch.zeros(1, device="cuda")
    timing.warm(lambda: number.add_(1))
    smallest = timing.Device().cold(lambda: number.add_(1)) * 1e6
    row: Row = {
        "step": "ceilings",
        "name": "copy, bf16 matmul",
        "smallest_graph_us": smallest,
        "method": METHOD,
    }
    yield {**row, **run.ceilings}


def ops(run: Run) -> Iterator[Row]:
    device = timing.Device()
    for B in BATCHES:
        torch.compiler.reset()
        for case in cases(B, torch.bfloat16):
            yield _op(run, case, B, device)
            torch.cuda.empty_cache()


@torch.inference_mode()
def _op(run: Run, case: Case, B: int, device: timing.Device) -> Row:
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
    pristine = [t.clone() for t in case.inputs]  # timed calls update theirs in place, again and again
    want = case.functions["eager"](*(t.clone() for t in pristine))
    for name, function in case.functions.items():
        if name != "ours" and run.left() < _RESERVE:
            row["errors"][name] = "no time left"
            continue
        try:
            right = close(function(*(t.clone() for t in pristine)), want)
            if name == "ours":
                row["ok"] = right
            if not right:
                row["errors"][name] = "wrong result"
            call = partial(function, *case.inputs)
            timing.warm(call)
            row["call_us"][name] = timing.wall(call) * 1e6
            row["device_us"][name] = device.cold(call) * 1e6
            row["device_hot_us"][name] = device.hot(call) * 1e6
        except (
            Exception
        ) as error:  # one implementation that cannot be timed must not cost the rest of the run
            row["errors"][name] = _said(error)
    if "ours" in row["device_us"]:
        row["share"] = row["floor_us"] / row["device_us"]["ours"]
    return row


def close(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> bool:
    """Within 2 % of the peak, which no right bf16 result misses; the error rule itself is the test suite's.
    """
    pairs = [(g.float(), w.float()) for g, w in zip(got, want, strict=True)]
    return all(bool((g - w).abs().max() <= 0.02 * w.abs().max()) for g, w in pairs)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


def clips(B: int) -> dict[str, Tensor]:
    """frames [B,8,3,224,224] of grey levels and audio [B,8,32000], on the GPU."""
    frames = torch.randint(0, 256, (B, 8, 3, 224, 224), device="cuda", dtype=torch.uint8)
    return {"frames": frames, "audio": 0.1 * torch.randn(B, 8, 32000, device="cuda")}


def encoders(run: Run) -> Iterator[Row]:
    if not run.ceilings:
        yield from ceilings(run)
    for B in ENCODER_BATCHES:
        inputs = clips(B)
        least = []
        for name, (flops, stream) in ENCODERS.items():
            slow, fast, x = getattr(run.slow, name), getattr(run.fast, name), inputs[stream]
            least.append(roofline.floor(flops(B), nbytes(fast), run.ceilings))
            torch.compiler.reset()
            calls = {
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
            yield _encoder(run, row, calls, least[-1])
        rest = sum(
            nbytes(getattr(run.fast, part))
            for part in ("face_head", "video_branch", "audio_branch", "fusion")
        )
        least.append(roofline.floor(0, rest, run.ceilings))  # their FLOPs are few
        both = inputs["frames"], inputs["audio"]
        calls = {
            "eager": partial(run.slow.encode_streams, *both),
            "fast": partial(run.fast.encode_streams, *both),
        }
        yield _encoder(run, {"step": "encoder", "name": "encode", "batch": B}, calls, sum(least))


def compiled(encoder: nn.Module) -> nn.Module:
    """Call the encoder itself first: transformers then installs hooks, at which a graph would break."""
    return torch.compile(encoder, dynamic=False)


def nbytes(module: nn.Module) -> int:
    """Bytes of a module's weights."""
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


@torch.inference_mode()
def _encoder(run: Run, row: Row, calls: dict[str, timing.Call], least: float) -> Row:
    """Milliseconds as the caller waits, bytes held beyond weights and inputs, kernels a call."""
    row |= {
        "floor_ms": least * 1e3,
        "ms": {},
        "over_floor": {},
        "peak_bytes": {},
        "kernels": {},
        "errors": {},
    }
    for name in [*calls, "fast graph"]:
        if name == "compiled" and run.left() < _RESERVE / 2:
            row["errors"][name] = "no time left"
            continue
        try:
            call = calls[name.removesuffix(" graph")]
            timing.warm(call)
            if name == "fast graph":
                graphs: list[torch.cuda.CUDAGraph] = []
                row["peak_bytes"][name] = timing.peak_memory(partial(_keep, graphs, call))
                call = graphs[0].replay
                timing.warm(call)
            else:
                row["peak_bytes"][name] = timing.peak_memory(call)
            taken = timing.wall(call, 20)
            row["ms"][name], row["over_floor"][name] = taken * 1e3, taken / least
            row["kernels"][name] = timing.kernels(call)
        except Exception as error:  # as for the ops
            row["errors"][name] = _said(error)
    return row


def _keep(graphs: list[torch.cuda.CUDAGraph], call: timing.Call) -> None:
    graphs.append(timing.capture(call))


def warm(what: str) -> None:
    """Compile what the timings will want into PyTorch's cache on disk; many processes do it while the checks
    run.
    """
    if what == "ops":
        for B in BATCHES:
            torch.compiler.reset()
            for case in cases(B, torch.bfloat16):
                for name, function in case.functions.items():
                    if name.startswith("compiled"):
                        with torch.inference_mode():
                            function(*case.inputs)
    else:
        encoder = _random_encoder(what)
        for B in ENCODER_BATCHES:
            torch.compiler.reset()
            x = clips(B)[ENCODERS[what][1]]
            with torch.inference_mode():
                encoder(x)
                compiled(encoder)(x)
    torch.cuda.synchronize()


def _random_encoder(what: str, device: str = "cuda") -> nn.Module:
    """The reference as a bundle would fill it, but for its numbers."""
    from nanoemox.config import NanoEmoXConfig
    from nanoemox.modules.audio import AudioEncoder
    from nanoemox.modules.face import FaceEncoder
    from nanoemox.modules.vision import VisionEncoder

    kinds = {"vision": VisionEncoder, "audio": AudioEncoder, "face": FaceEncoder}
    with torch.device(device):
        encoder = kinds[what](getattr(NanoEmoXConfig(), what))
    return encoder.to(torch.bfloat16).eval().requires_grad_(False)
