"""Prompts and targets -> one padded batch (docs/architecture.md section 11)."""

from collections.abc import Sequence

import torch
from torch import Tensor

IGNORED = -100  # label of a position that has no loss


def collate(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, bos: int, eos: int, pad: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pad samples to one batch.

    Args:
        pairs: (prompt, target) ids of every sample, without bos and eos.
        bos, eos, pad: special ids. Officially `pad` is `eos`.

    Returns:
        input_ids, labels int64 [B,L], attention_mask bool [B,L]. Rows are [bos] prompt target [eos]; labels
        are IGNORED on bos, prompt and padding. The mask hides every id that equals `pad`, so the final eos is
        hidden if `pad` is `eos`, although it has a label.
    """
    rows = [[bos, *prompt, *target, eos] for prompt, target in pairs]
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), pad)
    labels = torch.full((len(rows), length), IGNORED)
    for i, (row, (prompt, _)) in enumerate(zip(rows, pairs, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, 1 + len(prompt) : len(row)] = torch.tensor(row[1 + len(prompt) :])
    return ids, labels, ids != pad
