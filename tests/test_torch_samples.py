"""torch's own operator samples, run through our functions with torch tensors: values and gradients must be torch's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db

import tilegrad.nn.functional as F

OURS: dict[str, Callable[..., Any]] = {
    "nn.functional.cross_entropy": F.cross_entropy,
    "nn.functional.linear_cross_entropy": F.linear_cross_entropy,
    "nn.functional.linear": F.linear,
    "nn.functional.nll_loss": F.nll_loss,
    "nn.functional.binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits,
    "log_softmax": F.log_softmax,
    "softmax": F.softmax,
}
OPS = [op for op in op_db if op.name in OURS]


def leaves(args: list[Any]) -> list[torch.Tensor]:
    return [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]


def fresh(x: Any) -> Any:
    return x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x


def test_all_the_operators_are_there() -> None:
    assert {op.name for op in OPS} == set(OURS)
    assert {op.variant_test_name for op in OPS if op.name == "nn.functional.linear_cross_entropy"} >= {"", "chunked"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name + "-" + op.variant_test_name)
def test_sample(op: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tried = 0
    # torch's linear_cross_entropy warns where it gives up its own chunked path.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
            runs = []
            for function in (op.op, OURS[op.name]):
                args = [fresh(a) for a in (sample.input, *sample.args)]
                kwargs = {k: fresh(v) for k, v in sample.kwargs.items()}
                out = function(*args, **kwargs)
                wanted = leaves([*args, *kwargs.values()])
                torch.manual_seed(tried)
                runs.append((out, torch.autograd.grad(out, wanted, torch.randn_like(out))))
            (expected, expected_grads), (got, got_grads) = runs
            torch.testing.assert_close(got, expected, equal_nan=True)
            for g, e in zip(got_grads, expected_grads, strict=True):
                torch.testing.assert_close(g, e, equal_nan=True)
            tried += 1
    assert tried >= 7
