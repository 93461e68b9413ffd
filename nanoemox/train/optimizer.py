"""AdamW over the trainable tensors, and its state under their official names."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

_MOMENTS = ("exp_avg", "exp_avg_sq")


def adamw(
    parameters: Mapping[str, nn.Parameter], *, weight_decay: float, betas: tuple[float, ...]
) -> torch.optim.AdamW:
    """Two groups: tensors of two dimensions and more decay, the others do not (architecture section 17).

    The official rule also spares names that hold "bias", "ln" or "bn"; all of those have one dimension.
    """
    decayed = [p for p in parameters.values() if p.ndim >= 2]
    spared = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=0.0, betas=(betas[0], betas[1])
    )


def whole(tensor: Tensor) -> Tensor:
    """A tensor on the CPU; one that is sharded over processes is gathered (every process must ask)."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def state_of(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict]:
    """("exp_avg.NAME" and "exp_avg_sq.NAME" -> tensor, NAME -> updates so far); what has no update yet is left out."""
    moments: dict[str, Tensor] = {}
    steps: dict[str, int] = {}
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter)
        if state:
            steps[name] = int(state["step"])
            moments |= {f"{moment}.{name}": whole(state[moment]) for moment in _MOMENTS}
    return moments, steps


def restore(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    moments: Mapping[str, Tensor],
    steps: Mapping[str, Any],
) -> None:
    for name, count in steps.items():
        parameter = parameters[name]
        state: dict[str, Tensor] = {"step": torch.tensor(float(count))}
        state |= {moment: like(moments[f"{moment}.{name}"], parameter) for moment in _MOMENTS}
        optimizer.state[parameter] = state


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` on the parameter's device, in its dtype and sharded as it is."""
    value = value.to(parameter.device, parameter.dtype)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value.clone()


@torch.no_grad()
def assign(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Give parameters the values under their names; names that are not among the parameters are passed over."""
    for name, value in values.items():
        if name in parameters:
            parameters[name].copy_(like(value, parameters[name]))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
