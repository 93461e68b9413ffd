"""Puts the streams' tokens into an embedded prompt (docs/architecture.md section 11)."""

from torch import Tensor

from ..errors import InputError
from .encoded import Encoded


def without_placeholders(ids: Tensor, placeholders: dict[str, int]) -> Tensor:
    """ids [B,L] with 0 in place of every placeholder, whose id may lie past the end of the embedding."""
    text = ids.clone()
    for token in placeholders.values():
        text[ids == token] = 0
    return text


def splice_streams(
    embeds: Tensor, ids: Tensor, encoded: Encoded, placeholders: dict[str, int], counts: dict[str, int]
) -> Tensor:
    """Overwrite the rows of every stream's placeholders with the stream's tokens.

    Args:
        embeds: [B,L,W], changed in place.
        ids: [B,L], placeholders included.
        encoded: streams of B clips.
        placeholders: stream -> id of its placeholder.
        counts: stream -> how many tokens it has.

    Returns:
        `embeds`.

    Raises:
        InputError: a stream that the clip does not have, or placeholders that do not occur exactly as often
            as the stream has tokens, one after the other.
    """
    for kind, token in placeholders.items():
        is_placeholder = ids == token
        if not is_placeholder.any():
            continue
        tokens, count = encoded.stream(kind), counts[kind]
        if tokens is None:
            raise InputError(f"the prompt shows {kind}, but the clip has none")
        for row in range(ids.shape[0]):
            positions = is_placeholder[row].nonzero().flatten().tolist()
            if not positions:
                continue
            first = positions[0]
            if positions != list(range(first, first + count)):
                raise InputError(
                    f"row {row}: want {count} consecutive {kind} placeholders, got {len(positions)}"
                )
            embeds[row, first : first + count] = tokens[row].to(embeds.dtype)
    return embeds
