"""AdamW over the trainable tensors, and its state by their official names (docs/training.md section 1)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

_MOMENTS = ("exp_avg", "exp_avg_sq")


def adamw(
    parameters: Mapping[str, nn.Parameter], *, weight_decay: float, betas: tuple[float, ...]
) -> torch.optim.AdamW:
    """AdamW with weight decay for tensors of two or more dimensions alone.

    The official rule also exempts names that contain "bias", "ln" or "bn"; all of these have one dimension.
    """
    with_decay = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
    without_decay = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    groups = [
        {"params": with_decay, "weight_decay": weight_decay},
        {"params": without_decay, "weight_decay": 0.0},
    ]
    nonempty = [group for group in groups if group["params"]]
    return torch.optim.AdamW(nonempty, lr=0.0, betas=(betas[0], betas[1]))


def whole(tensor: Tensor) -> Tensor:
    """A tensor on the CPU. One that is sharded over processes is gathered: every process must call this."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def state_of(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The state of the optimizer; parameters without an update are left out.

    Returns:
        "exp_avg.NAME" and "exp_avg_sq.NAME" -> tensor, and NAME -> number of updates.
    """
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
    steps: Mapping[str, int],
) -> None:
    """Set the state that `state_of` returned."""
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
    """Copy values into the parameters of the same name; other names are ignored."""
    for name, value in values.items():
        if name in parameters:
            parameters[name].copy_(like(value, parameters[name]))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate
