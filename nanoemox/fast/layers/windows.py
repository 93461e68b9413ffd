"""Index maps of Swin's shifted windows: padding, rolling and cutting a feature map in one gather."""

from functools import lru_cache

import torch
from torch import Tensor

_MASKED = -100.0  # Swin's addend for scores of positions that only the shift has brought into one window


@lru_cache(maxsize=64)
def window_maps(
    height: int, width: int, window: int, shift: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Positions of a feature map in the order of its shifted windows, and the way back.

    Args:
        height, width: of the feature map.
        window: side of a window.
        shift: by which the map is rolled before it is cut.
        device: of the results.

    Returns:
        index [windows*window**2], the position of the map at each position of the windows; the position
            height*width is padding.
        inverse [height*width], the position in the windows of each position of the map.
    """
    count = height * width
    grid = torch.full((_padded(height, window), _padded(width, window)), count)
    grid[:height, :width] = torch.arange(count).view(height, width)
    index = _cut(grid.roll((-shift, -shift), (0, 1)), window).flatten()
    inverse = torch.empty(count + 1, dtype=torch.long).index_copy_(0, index, torch.arange(len(index)))[:count]
    return index.to(device), inverse.to(device)


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """What Swin adds to the scores within shifted windows, in fp32.

    Returns:
        [windows,1,window**2,window**2], the same for all heads; a zero [1,1,1,1] without a shift.
    """
    if not shift:
        return torch.zeros(1, 1, 1, 1)
    regions = []
    for side in (_padded(height, window), _padded(width, window)):
        position = torch.arange(side)
        regions.append((position >= side - window).long() + (position >= side - shift).long())
    rows, columns = regions
    labels = _cut(rows[:, None] * 3 + columns, window)
    different = labels[:, None] != labels[:, :, None]
    return (different * _MASKED)[:, None]


def relative_positions(window: int) -> Tensor:
    """Row of Swin's bias table for every pair of positions in a window: [window**4], int64."""
    side = torch.arange(window)
    row, column = (axis.flatten() for axis in torch.meshgrid(side, side, indexing="ij"))
    row_offset, column_offset = (axis[:, None] - axis + window - 1 for axis in (row, column))
    return (row_offset * (2 * window - 1) + column_offset).flatten()


def _padded(side: int, window: int) -> int:
    return side + -side % window


def _cut(grid: Tensor, window: int) -> Tensor:
    """[H,W] -> [windows,window**2]."""
    rows, columns = grid.shape[0] // window, grid.shape[1] // window
    return grid.view(rows, window, columns, window).transpose(1, 2).reshape(rows * columns, window * window)
