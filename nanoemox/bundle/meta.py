"""Modules without parameter memory, for this thread alone."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _EmptyOnMeta(TorchFunctionMode):
    """torch.empty, of which layers make their weights, allocates nothing. The mode is this thread's own."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.empty:
            kwargs["device"] = "meta"
        return function(*args, **kwargs)


Module = TypeVar("Module", bound=nn.Module)


def without_parameters(make: Callable[[], Module]) -> Module:
    """The module that `make` builds, its parameters on the meta device. Buffers are real: no file holds them."""
    with _EmptyOnMeta():
        module = make()
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and not parameter.is_meta:
                part._parameters[name] = nn.Parameter(
                    parameter.to("meta"), requires_grad=parameter.requires_grad
                )
    return module
