"""What encoding gives: the tokens that the language model reads, and what the branches saw."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Encoded:
    """What the language model is shown of B clips, and what the branches saw.

    visual [B,32,W], speech [B,32,W], face [B,4,W], fusion [B,1,W] in the model's dtype, None where the stream is
    absent; gates [B,E] and face_attention [B,heads,queries,frames] in fp32; features: the encoders' outputs by name.
    """

    visual: Tensor | None = None
    speech: Tensor | None = None
    face: Tensor | None = None
    fusion: Tensor | None = None
    gates: Tensor | None = None
    face_attention: Tensor | None = None
    features: dict[str, Tensor] = field(default_factory=dict)

    def stream(self, kind: str) -> Tensor | None:
        """Tokens of a prompt stream."""
        return {"frames": self.visual, "audio": self.speech, "face": self.face, "fusion": self.fusion}.get(
            kind
        )
