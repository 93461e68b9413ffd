"""Prompts and targets -> one padded batch (architecture section 11)."""

from collections.abc import Sequence

import torch
from torch import Tensor

IGNORED = -100


def collate(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, bos: int, eos: int, pad: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(prompt, target) ids -> input_ids, labels, attention_mask, each [B,L].

    Rows are [bos] prompt target [eos]; labels are IGNORED on bos, prompt and padding. The mask hides every id equal to
    `pad`; officially pad is eos, so that the final eos is hidden too while its label counts.
    """
    rows = [[bos, *prompt, *target, eos] for prompt, target in pairs]
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), pad)
    labels = torch.full((len(rows), length), IGNORED)
    for i, (row, (prompt, _)) in enumerate(zip(rows, pairs, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, 1 + len(prompt) : len(row)] = torch.tensor(row[1 + len(prompt) :])
    return ids, labels, ids != pad
