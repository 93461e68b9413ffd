"""Which position of a map lies where in its shifted windows:

Swin's rolling, padding and cutting as index maps.
"""

from functools import lru_cache

import torch
from torch import Tensor

_SEPARATE = -100.0  # what Swin adds to the scores of positions that only the shift has brought together


@lru_cache(maxsize=64)
def window_maps(
    height: int, width: int, window: int, shift: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(index, inverse): row i of the windows is row index[i] of the map, and row height*width is padding.

    index [windows*window**2], inverse [height*width].
    """
    count = height * width
    grid = torch.full((height + -height % window, width + -width % window), count)
    grid[:height, :width] = torch.arange(count).view(height, width)
    index = _cut(grid.roll((-shift, -shift), (0, 1)), window).flatten()
    inverse = torch.empty(count + 1, dtype=torch.long).index_copy_(0, index, torch.arange(len(index)))[:count]
    return index.to(device), inverse.to(device)


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """What is added to the scores of every head: [windows,1,window**2,window**2];

    [1,1,1,1] of zero without a shift.
    """
    if not shift:
        return torch.zeros(1, 1, 1, 1)
    regions = []
    for size in (height + -height % window, width + -width % window):
        place = torch.arange(size)
        regions.append((place >= size - window).long() + (place >= size - shift).long())
    cut = _cut(regions[0][:, None] * 3 + regions[1], window)
    return ((cut[:, None] != cut[:, :, None]) * _SEPARATE)[:, None]


def relative_positions(window: int) -> Tensor:
    """Row of the bias table for every pair of positions in a window, [window**4]."""
    place = torch.arange(window)
    row, column = (axis.flatten() for axis in torch.meshgrid(place, place, indexing="ij"))
    row, column = (axis[:, None] - axis + window - 1 for axis in (row, column))
    return (row * (2 * window - 1) + column).flatten()


def _cut(grid: Tensor, window: int) -> Tensor:
    """[H,W] -> [windows,window**2]."""
    rows, columns = grid.shape[0] // window, grid.shape[1] // window
    return grid.view(rows, window, columns, window).transpose(1, 2).reshape(rows * columns, window * window)
