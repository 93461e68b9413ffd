"""Interfaces of the eight parts of the model, which the reference parts and the fast ones share.

Letters: B clips, T time steps (8 frames, 8 windows of sound), D width of an encoder, L taps, W width of the
language model, V its vocabulary.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class VisionPart(Protocol):
    """CLIP over the frames (docs/architecture.md section 2)."""

    def __call__(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """frames [B,T,3,H,W] in 0..255 -> features [B,T,D], taps [B,T,L*D]."""
        ...


class AudioPart(Protocol):
    """HuBERT over windows of sound (docs/architecture.md section 3)."""

    def __call__(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """windows [B,T,samples] at 16 kHz -> features [B,T,D], taps [B,T,L*D]."""
        ...


class FacePart(Protocol):
    """FaceXFormer's encoder over the frames (docs/architecture.md section 8)."""

    def __call__(self, frames: Tensor) -> Tensor:
        """frames [B,T,3,H,W] in 0..255 -> features [B,T,F]."""
        ...


class FaceHeadPart(Protocol):
    """Temporal cross-attention of learned queries over the frames (docs/architecture.md section 8)."""

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """features [B,T,F] -> tokens [B,queries,W], attention [B,heads,queries,T] in fp32."""
        ...


class BranchPart(Protocol):
    """From an encoder's features to tokens (docs/architecture.md sections 4, 5 and 6)."""

    def __call__(self, features: Tensor) -> Tensor:
        """features [B,T,D] -> tokens [B,n,W]."""
        ...


class FusionPart(Protocol):
    """Gated experts over the taps of both encoders (docs/architecture.md section 7)."""

    def __call__(
        self, audio: Tensor, audio_taps: Tensor, visual: Tensor, visual_taps: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Features [B,T,D], taps [B,T,L*D] of both encoders -> tokens [B,n,W], gates [B,E] fp32 or None."""
        ...


class LanguagePart(Protocol):
    """Qwen2.5, token by token; a state holds the caches of several sequences.

    Source: docs/architecture.md section 9.
    """

    def embed(self, ids: Tensor) -> Tensor:
        """ids [...] -> embeddings [...,W]."""
        ...

    def start(self, prompts: Sequence[Tensor] | Tensor, shared: Tensor | None = None) -> tuple[Tensor, Any]:
        """Read embedded prompts [L,W] behind `shared` [P,W] -> logits of the last positions [B,V], state."""
        ...

    def step(self, ids: Tensor, state: Any) -> Tensor:
        """One more token of each sequence: ids [B] -> logits [B,V]."""
        ...

    def keep(self, state: Any, rows: list[int]) -> None:
        """Continue with these rows of the sequences alone."""
        ...

    def end(self, state: Any) -> None:
        """Release the memory of all sequences."""
        ...
