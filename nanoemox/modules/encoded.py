"""The results of encoding: of each stream, and all together."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class VisionStream(NamedTuple):
    """CLIP's outputs: features [B,T,D], taps [B,T,L*D]."""

    features: Tensor
    taps: Tensor


class AudioStream(NamedTuple):
    """HuBERT's outputs, features [B,T,D] and taps [B,T,L*D], and the tokens of its branch [B,n,W]."""

    features: Tensor
    taps: Tensor
    tokens: Tensor


class FaceStream(NamedTuple):
    """The face encoder's features [B,T,F], tokens [B,queries,W], attention [B,heads,queries,T] or None."""

    features: Tensor
    tokens: Tensor
    attention: Tensor | None


class FusionStream(NamedTuple):
    """The fusion's tokens [B,n,W] and gates [B,E] in fp32, or None where a variant has no gates."""

    tokens: Tensor
    gates: Tensor | None


@dataclass
class Encoded:
    """Tokens of B clips for the language model, and what can be inspected of how they came about.

    W is the width of the language model. A stream that the clips do not have is None.

    Attributes:
        visual: [B,32,W] in the dtype of the model, tokens of the frames.
        speech: [B,32,W] in the dtype of the model, tokens of the sound.
        face: [B,4,W] in the dtype of the model, tokens of the face.
        fusion: [B,1,W] in the dtype of the model, the token of the fused streams; needs frames and sound.
        gates: [B,3] in fp32, weight of each fusion expert; a row sums to 1.
        face_attention: [B,heads,queries,frames] in fp32, attention of the face queries over the frames.
        features: the encoders' outputs by name: `visual`, `audio` [B,T,D], `visual_taps`, `audio_taps`
            [B,T,L*D], `face` [B,T,256].

    Source: docs/architecture.md sections 1 to 8.
    """

    visual: Tensor | None = None
    speech: Tensor | None = None
    face: Tensor | None = None
    fusion: Tensor | None = None
    gates: Tensor | None = None
    face_attention: Tensor | None = None
    features: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        vision: VisionStream | None,
        visual: Tensor | None,
        audio: AudioStream | None,
        face: FaceStream | None,
        fusion: FusionStream | None,
    ) -> "Encoded":
        """The streams' results as one; `visual` holds the tokens of the video branch."""
        features: dict[str, Tensor] = {}
        if vision is not None:
            features |= {"visual": vision.features, "visual_taps": vision.taps}
        if audio is not None:
            features |= {"audio": audio.features, "audio_taps": audio.taps}
        if face is not None:
            features["face"] = face.features
        return cls(
            visual=visual,
            speech=None if audio is None else audio.tokens,
            face=None if face is None else face.tokens,
            fusion=None if fusion is None else fusion.tokens,
            gates=None if fusion is None else fusion.gates,
            face_attention=None if face is None else face.attention,
            features=features,
        )

    def stream(self, kind: str) -> Tensor | None:
        """Tokens of a prompt stream: `frames`, `audio`, `face` or `fusion`."""
        streams = {"frames": self.visual, "audio": self.speech, "face": self.face, "fusion": self.fusion}
        return streams.get(kind)
