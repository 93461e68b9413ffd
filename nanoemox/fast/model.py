"""The accelerated twin of the model: the same weights and results, on nanoemox_kernels.

`accelerate` turns a filled reference model into it. What has no fast form keeps the reference part; `why_not`
says which and why, from the configuration alone."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from nanoemox_kernels import settings

from ..build import build_empty
from ..bundle.fill import fill
from ..bundle.folder import CARD
from ..bundle.official_names import OfficialTensors
from ..bundle.save import copy_bundle, save_bundle
from ..errors import CheckpointError
from ..generation.tokenizer import Tokenizer
from ..model import NanoEmoX, reference_language
from ..modules.encoded import AudioStream, Encoded, FaceStream, FusionStream, VisionStream
from .cuda_graphs import Replayed, limit_sms, replayed, run_branches
from .decode.adapters import merge_adapters
from .decode.smoothing import scaled
from .fusion import FastFusion

_Stamp = list[tuple[str, int, int]]
_GRAPH_PARTS = ("vision", "audio", "face", "face_head", "video_branch", "audio_branch", "fusion")


class FastNanoEmoX(Replayed, NanoEmoX):
    """The accelerated form, for inference. Its weights are folded and packed; the official tensors stay in
    its bundle.

    On a GPU `encode_streams` is one CUDA graph a shape, with the streams as branches (docs/architecture.md
    section 22).
    """

    def __init__(self, reference: NanoEmoX, parts: dict[str, nn.Module], quantize: str | None):
        """parts: the eight parts, fast where they have a fast form; quantize: form of the language model's
        weights.
        """
        super().__init__(reference.config, parts)
        self.tokenizer, self.templates = reference.tokenizer, reference.templates
        self.source = reference.source
        self.fast, self.quantize = True, quantize
        self._stamp = _stamp(self.source)
        # A part, and where its first weight is stored: a walk through all parts at every call takes 60 us.
        self._first_weights: list[tuple[nn.Module, dict[str, Tensor | None], str]] = []

    def encode_streams(self, frames: Tensor | None, audio: Tensor | None) -> Encoded:
        """As the reference."""
        return self._encode_branches(frames, audio)

    @replayed
    def _encode_branches(self, frames: Tensor | None, audio: Tensor | None) -> Encoded:
        """Vision, face and audio as branches of a graph; projection and fusion once both encoders are done.

        For a few clips every branch is limited to a share of the multiprocessors: one branch's products would
        otherwise take the whole GPU while the others wait. More clips fill the GPU by themselves.
        """
        streams = frames if frames is not None else audio
        if streams is None:
            return Encoded()
        shares = _branch_shares(streams)

        def encode_vision() -> VisionStream:
            with limit_sms(shares["vision"]):
                return self._encode_vision(cast(Tensor, frames))

        def encode_face() -> FaceStream:
            with limit_sms(shares["face"]):
                return self._encode_face(cast(Tensor, frames))

        def encode_audio() -> AudioStream:
            with limit_sms(shares["audio"]):
                return self._encode_audio(cast(Tensor, audio))

        def encode_and_fuse() -> tuple[
            VisionStream | None, Tensor | None, AudioStream | None, FusionStream | None
        ]:
            vision, sound = run_branches(
                None if frames is None else encode_vision, None if audio is None else encode_audio
            )
            visual, fusion = run_branches(
                None if vision is None else partial(self._project_visual, vision),
                None if vision is None or sound is None else partial(self._fuse, sound, vision),
            )
            return vision, visual, sound, fusion

        # The face encoder has the longest chain of small kernels: it stays on the graph's own stream.
        face, fused = run_branches(None if frames is None else encode_face, encode_and_fuse)
        vision, visual, sound, fusion = fused
        return Encoded.of(vision, visual, sound, face, fusion)

    def graph_dependencies(self) -> Sequence[Tensor] | None:
        """A weight of each part: one may be moved or replaced by itself."""
        parts = [cast(nn.Module, self._modules[name]) for name in _GRAPH_PARTS]
        encoders_replay = all(isinstance(part, Replayed) and part.replays for part in parts[:3])
        if self.training or not (self.replays and encoders_replay and isinstance(parts[-1], FastFusion)):
            return None
        known = [part for part, _, _ in self._first_weights] == parts
        if not known or any(tensors[name] is None for _, tensors, name in self._first_weights):
            self._first_weights = [(part, *_first_weight(part)) for part in parts]
        return [cast(Tensor, tensors[name]) for _, tensors, name in self._first_weights]

    def save(self, folder: str | Path) -> None:
        """Write a bundle with the weights of the one it was loaded from, in this model's dtype.

        Adapters stay apart; in a quantised model they are merged, and its matrices are written as it holds
        them."""
        if self.source is None or _stamp(self.source) != self._stamp:
            raise CheckpointError(
                f"{self.source}: the bundle that this model came from has changed since, and a fast model "
                "keeps no official tensors of its own: load it again, or with fast=False"
            )
        if self.config.quantize != "none":
            return copy_bundle(self.source, folder)
        reference = build_empty(self.config, self.source)
        fill(reference, self.config, self.source, torch.device("cpu"), self.dtype)
        reference_language(reference).tie()
        reference.tokenizer, reference.templates, reference.source = (
            self.tokenizer,
            self.templates,
            self.source,
        )
        if self.quantize and self.config.lora is not None:
            merge_adapters(reference_language(reference))
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


def _first_weight(part: nn.Module) -> tuple[dict[str, Tensor | None], str]:
    """The first tensor of a part: the parameters or buffers of a module, and its name there."""
    for module in part.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    return cast(dict[str, Tensor | None], tensors), name
    raise ValueError(f"{type(part).__name__} has no tensor")


def _branch_shares(clips: Tensor) -> dict[str, float]:
    """Share of the multiprocessors of each branch for a batch of clips; 0 is no limit."""
    measured = settings("encoder_branches", clips.device)
    few = len(clips) <= measured["clips"]
    return {name: measured[name] if few else 0 for name in ("vision", "face", "audio")}


def _stamp(folder: Path | None) -> _Stamp:
    files = sorted(folder.glob("*.safetensors")) if folder else []
    return [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
