"""Modules without memory for their parameters.

Nothing is patched for the process: a function mode of PyTorch belongs to the thread that enters it, so that
other threads can build modules with values meanwhile. transformers and peft build their modules from
PyTorch's layers and need no treatment of their own.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Module = TypeVar("Module", bound=nn.Module)


class _EmptyOnMeta(TorchFunctionMode):
    """Lets torch.empty, with which PyTorch's layers create their weights, allocate nothing."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if function is torch.empty:
            options["device"] = "meta"
        return function(*args, **options)


def without_parameters(make: Callable[[], Module]) -> Module:
    """Build a module whose parameters are on the meta device.

    Buffers are filled: they are computed by their module and stored in no file. Parameters that are not
    created by torch.empty (learned queries, scales of norms) exist for a moment.

    Args:
        make: builds the module.

    Returns:
        The module; parameters that were shared still are.
    """
    with _EmptyOnMeta():
        module = make()
    on_meta: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None or parameter.is_meta:
                continue
            if parameter not in on_meta:
                on_meta[parameter] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
            part._parameters[name] = on_meta[parameter]
    return module
