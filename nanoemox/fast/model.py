"""The accelerated twin of the model: the same weights and results, on nanoemox_kernels.

`accelerate` turns a filled reference model into it. What has no fast form keeps the reference part; `why_not` says
which and why, from the configuration alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ..build import build_empty
from ..bundle.folder import CARD
from ..bundle.official_names import OfficialTensors
from ..bundle.save import copy_bundle, save_bundle
from ..bundle.tensors import fill
from ..errors import CheckpointError
from ..generation.tokenizer import Tokenizer
from ..model import NanoEmoX
from ..modules.encoded import Encoded
from .cuda_graphs import Replayed, replayed, share, side_by_side
from .decode.adapters import merge_adapters
from .decode.smoothing import scaled
from .fusion import FastFusion

_Stamp = list[tuple[str, int, int]]
_PARTS = (
    "vision",
    "audio",
    "face",
    "face_head",
    "video_branch",
    "audio_branch",
    "fusion",
)  # of encode's graph
# Parts of a GPU's multiprocessors for the products of a few clips: without them each takes the whole GPU, and branches
# wait for each other; more clips fill it by themselves. Measured: benchmarks/results/NVIDIA-H100-...-trials-*.json.
_FEW, _WATCH, _LOOK, _LISTEN = 2, 0.75, 0.4, 0.5


class FastNanoEmoX(Replayed, NanoEmoX):
    """For inference: what it holds of the weights is folded and packed, the official tensors stay in its bundle."""

    def __init__(self, reference: NanoEmoX, parts: dict[str, nn.Module], quantize: str | None):
        NanoEmoX.__init__(self, reference.config, parts)
        self.tokenizer, self.templates, self.source = (
            reference.tokenizer,
            reference.templates,
            reference.source,
        )
        self.fast, self.quantize = True, quantize
        self._stamp = _stamp(self.source)
        self._first: list[tuple[nn.Module, dict, str]] = []  # a part, and where its first weight is held

    def encode_streams(self, frames: Tensor | None, audio: Tensor | None) -> Encoded:
        """As the reference; on a GPU vision, face and sound are branches of one graph."""
        return self._encode(frames, audio)

    @replayed
    def _encode(self, frames: Tensor | None, audio: Tensor | None) -> Encoded:
        return super().encode_streams(frames, audio)

    def rests_on(self) -> Sequence[Tensor] | None:
        """A weight of each part: one may be moved or replaced by itself."""
        parts = [cast(nn.Module, self._modules[name]) for name in _PARTS]
        replays = all(isinstance(encoder, Replayed) and encoder.replays for encoder in parts[:3])
        if self.training or not (self.replays and replays and isinstance(parts[-1], FastFusion)):
            return None
        # Where they are held is remembered: a GPU waits at every call, and a walk through the parts takes 60 us.
        first = self._first
        if [part for part, _, _ in first] != parts or any(held[name] is None for _, held, name in first):
            first = self._first = [(part, *_first_of(part)) for part in parts]
        return [held[name] for _, held, name in first]

    def _run(self, jobs: Sequence[Callable[[], None]]) -> None:
        side_by_side(jobs)

    def _watch(self, frames: Tensor, out: Encoded) -> None:
        with _share(_WATCH, frames):
            super()._watch(frames, out)

    def _look(self, frames: Tensor, out: Encoded) -> None:
        with _share(_LOOK, frames):
            super()._look(frames, out)

    def _listen(self, audio: Tensor, out: Encoded) -> None:
        with _share(_LISTEN, audio):
            super()._listen(audio, out)

    def save(self, folder: str | Path) -> None:
        """Write a bundle with the weights of the one it was loaded from, in this model's dtype.

        Adapters stay apart; in a quantised model they are merged, and its matrices are written as it holds them.
        """
        if self.source is None or _stamp(self.source) != self._stamp:
            raise CheckpointError(
                f"{self.source}: the bundle that this model came from has changed since, and a fast model keeps no "
                "official tensors of its own: load it again, or with fast=False"
            )
        if self.config.quantize != "none":
            return copy_bundle(self.source, folder)
        reference = build_empty(self.config, self.source)
        fill(reference, self.config, self.source, torch.device("cpu"), self.dtype)
        reference.language.tie()
        reference.tokenizer, reference.templates, reference.source = (
            self.tokenizer,
            self.templates,
            self.source,
        )
        if self.quantize and self.config.lora is not None:
            merge_adapters(reference.language)
            reference.config = replace(self.config, lora=None)
        card = self.source / CARD
        save_bundle(
            folder,
            reference.config,
            OfficialTensors(reference, reference.config),
            cast(Tokenizer, self.tokenizer),
            self.templates,
            card=card.read_text() if card.is_file() else None,
            quantize=self.quantize,
            scale=partial(scaled, getattr(self.language, "smoothed", ())),
        )
        self._stamp = _stamp(self.source)


def _first_of(part: nn.Module) -> tuple[dict, str]:
    """The first tensor of a part: the parameters or buffers of a module, and its name there."""
    held: Iterator[dict] = chain.from_iterable(
        (module._parameters, module._buffers) for module in part.modules()
    )
    return next((tensors, name) for tensors in held for name, tensor in tensors.items() if tensor is not None)


def _share(part: float, clips: Tensor) -> AbstractContextManager[None]:
    return share(part if len(clips) <= _FEW else 0)


def _stamp(folder: Path | None) -> _Stamp:
    files = sorted(folder.glob("*.safetensors")) if folder else []
    return [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
