"""Each op at the shapes of the model: ours, PyTorch in eager mode, and the same under torch.compile."""

import pytest
import torch
from common.cases import SMALL, cases

BATCHES, DTYPES = (1, 8), (torch.bfloat16, torch.float32)
NAMES = [case.name for case in cases(1, torch.float32, SMALL, "meta")]


@pytest.mark.parametrize("B", BATCHES)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", NAMES)
def test_op(measure, device, name, dtype, B):
    case = next(case for case in cases(B, dtype, device=device) if case.name == name)
    # A wrong kernel is never timed.
    for got, want in zip(
        case.functions["ours"](*(tensor.clone() for tensor in case.inputs)),
        case.functions["eager"](*(tensor.clone() for tensor in case.inputs)),
        strict=True,
    ):
        torch.testing.assert_close(got.float(), want.float(), rtol=2e-2, atol=2e-2)
    calls = {
        form: lambda function=function: function(*case.inputs) for form, function in case.functions.items()
    }
    measure(f"{name} {str(dtype)[6:]} B={B}", calls, case.moved, case.flops)
