"""The optimisation loop of the stand-in pretraining."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

_WEIGHT_DECAY = 0.05


def fit(
    parameters: list[nn.Parameter],
    steps: int,
    rate: float,
    loss_of: Callable[[int], Tensor],
    say: Callable[[str], None],
    warm_up: int = 40,
) -> None:
    """Minimise a loss by AdamW: warm-up, a cosine to zero, gradients clipped to norm 1, bf16 autocast.

    Args:
        parameters: tensors of two or more dimensions decay, the others do not.
        steps: number of updates.
        rate: largest learning rate.
        loss_of: number of the step -> scalar loss.
        say: receives ten progress messages.
        warm_up: steps of the linear warm-up.
    """
    with_decay = [parameter for parameter in parameters if parameter.ndim >= 2]
    without_decay = [parameter for parameter in parameters if parameter.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": with_decay, "weight_decay": _WEIGHT_DECAY},
            {"params": without_decay, "weight_decay": 0},
        ]
    )
    began, mean = time.perf_counter(), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % max(1, steps // 10) == 0:
            say(f"step {step + 1} of {steps}: loss {mean:.3f}, {time.perf_counter() - began:.0f} s")
