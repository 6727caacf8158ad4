# What csrc/ offers to the engine. Arrays are NumPy's; None stands for what is not wanted.

import enum
from collections.abc import Sequence
from typing import Any

cuda_architectures: tuple[str, ...]  # what the CUDA kernels are compiled for; empty where they are left out

class Reduction(enum.Enum):
    none = 0
    sum = 1
    mean = 2

class LossArguments:
    def __init__(
        self,
        reduction: Reduction,
        ignore_index: int,
        label_smoothing: float,
        z_loss: float,
        softcap: float,
        by_share: float = -1.0,
        by_count: float = -1.0,
    ) -> None: ...

def know_bfloat16(dtype: Any) -> None: ...
def isa() -> str: ...
def num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...

# memory
def empty(shape: tuple[int, ...], dtype: Any, /) -> Any: ...
def release_memory() -> None: ...

# rows
def softmax(x: Any, y: Any, axis: int, log: bool, out: Any) -> None: ...
def cross_entropy(
    logits: Any, target: Any, weight: Any, o: LossArguments, loss: Any, lse: Any, argmax: Any, grad: Any, /
) -> None: ...
def cross_entropy_backward(
    upstream: Any, logits: Any, target: Any, weight: Any, lse: Any, o: LossArguments, grad: Any, grad_target: Any, /
) -> None: ...
def first_bad_index(target: Any, classes: int, ignore_index: int, /) -> int | None: ...

# c = a·b or c += a·b of bfloat16, with float32 rounded to it, where the processor has instructions for that
def multiplies_bfloat16() -> bool: ...
def product(a: Any, b: Any, c: Any, add: bool, /) -> None: ...

# elements
def epilogue(z: Any, bias: Any, activation: int, pre: Any, out: Any, /) -> None: ...
def epilogue_backward(grad: Any, saved: Any, activation: int, dz: Any, grad_bias: Any, /) -> None: ...
def activation(x: Any, activation: int, out: Any, /) -> None: ...
def activation_backward(grad: Any, saved: Any, activation: int, out: Any, /) -> None: ...
def convert(source: Any, target: Any, /) -> None: ...
def scale(x: Any, factor: float, /) -> None: ...

# linears so small that one call does it all; False: not small, and nothing was done
def small_linear(x: Any, weight: Any, bias: Any, activation: int, pre: Any, out: Any, /) -> bool: ...
def small_linear_backward(
    grad: Any, x: Any, weight: Any, saved: Any, activation: int, grad_input: Any, grad_weight: Any, grad_bias: Any, /
) -> bool: ...

# cuBLASLt: all matrices are row-major, A, B and D as (pointer, leading dimension[, transposed]); csrc/cuda/cublaslt.h
CUBLASLT_EPILOGUES: tuple[str, ...]

def cublaslt_load(paths: Sequence[str], /) -> tuple[int, str]: ...  # version and file
def cublaslt_workspace_bytes(device: int, /) -> int: ...
def cublaslt_takes(
    shape: tuple[int, int, int],  # (m, n, k)
    dtype: str,
    a: tuple[int, int, bool],
    b: tuple[int, int, bool],
    d: tuple[int, int],
    *,
    out_dtype: str | None = None,
    c: tuple[int, int] = (0, 0),
    alpha: float = 1.0,
    beta: float = 0.0,
    epilogue: str = "none",
    bias: int = 0,
    aux: tuple[int, int] = (0, 0),
    tf32: bool = False,
    workspace: tuple[int, int] = (0, 0),  # pointer and bytes
    device: int = 0,
    stream: int = 0,
    scratch: int = 0,
) -> bool: ...
def cublaslt_matmul(
    shape: tuple[int, int, int],
    dtype: str,
    a: tuple[int, int, bool],
    b: tuple[int, int, bool],
    d: tuple[int, int],
    **as_for_takes: Any,
) -> None: ...
def cublaslt_tune(  # microseconds of the fastest kernel, which matmul takes from then on; D is written to scratch
    shape: tuple[int, int, int],
    dtype: str,
    a: tuple[int, int, bool],
    b: tuple[int, int, bool],
    d: tuple[int, int],
    **as_for_takes: Any,
) -> float: ...

# optimisers: (value, gradient, up to three arrays of state or None, number of the step) of each parameter
def sgd(
    parameters: Sequence[tuple[Any, ...]],
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    /,
) -> bool: ...
def adam(
    parameters: Sequence[tuple[Any, ...]],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    /,
) -> bool: ...

# the tape
def begin_tape(engine: dict[str, Any], /) -> None: ...
def apply(cls: type, /, *args: Any) -> Any: ...
def walk(roots: Sequence[tuple[Any, Any]], keep_graph: bool, /) -> None: ...
def backward(tensor: Any, keep_graph: bool, /) -> bool: ...  # False, and nothing was done: no scalar of one element

# plain calls, from tensors to what is recorded; None, and nothing was done: not plain
def plain_softmax(cls: type, input: Any, dim: Any, /) -> Any: ...
def plain_cross_entropy(cls: type, input: Any, target: Any, options: Any, mean: bool, /) -> Any: ...
