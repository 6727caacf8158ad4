"""Parameter: the tensor that a Module registers when it is assigned to an attribute."""

from __future__ import annotations

from typing import Any

from ..creation import empty
from ..tensor import Tensor


class Parameter(Tensor):
    """A tensor to be trained: a Module lists it among its parameters once it is assigned to an attribute.

    It shares the memory of ``data``, any shape; results of operations on it are plain tensors.

    Raises:
        TypeError: ``data`` is not a Tensor.
        RuntimeError: ``requires_grad`` for a dtype that has no gradients.
    """

    __slots__ = ()

    def __init__(self, data: Tensor | None = None, requires_grad: bool = True):
        data = empty(0) if data is None else data
        if not isinstance(data, Tensor):
            raise TypeError(f"Parameter: expected a Tensor as data, got {type(data).__name__}")
        self._init(data._array)
        self._history = data._history  # one memory, one count of the writes to it
        self.requires_grad_(requires_grad)

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        memo[id(self)] = type(self)(self.data.clone(), self.requires_grad)  # without .grad, as in torch
        return memo[id(self)]
