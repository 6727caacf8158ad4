# What csrc/ offers to the engine. Arrays are NumPy's; None stands for what is not wanted.

import enum
from collections.abc import Sequence
from typing import Any, TypeAlias

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

# The CUDA C++ kernels: a module, which builds without nvcc do not have. An array is (address, dtype, shape, strides in
# bytes), as engine/cuda_views.py makes it. What launches takes the device and the stream last, and returns at once.
_Array: TypeAlias = tuple[int, int, tuple[int, ...], tuple[int, ...]]
_Maybe: TypeAlias = _Array | None

class cuda:
    emulated: bool  # the arrays are in memory of the CPU: tests

    @staticmethod
    def why_not() -> str | None: ...  # what is missing to run a kernel

    # rows
    @staticmethod
    def softmax(x: _Array, y: _Maybe, axis: int, log: bool, out: _Array, device: int, stream: int, /) -> None: ...

    # Losses. Their options are (reduction, ignore_index, label_smoothing, z_loss, softcap), their workspace (address or
    # 0, and of a loss that several launches make the first block of this one, and the blocks and rows of all).
    @staticmethod
    def cross_entropy_blocks(logits: _Array, target: _Array, grad: _Maybe, /) -> int: ...
    @staticmethod
    def loss_workspace_bytes(blocks: int, /) -> int: ...
    @staticmethod
    def count_targets(target: _Maybe, weight: _Maybe, classes: int, /, *options_workspace_place: float) -> None: ...
    @staticmethod
    def cross_entropy(
        upstream: _Maybe, logits: _Array, target: _Array, weight: _Maybe, /, *options_outputs_workspace_place: Any
    ) -> None: ...  # outputs: loss, lse, argmax, grad, grad_target, flag
    @staticmethod
    def cross_entropy_backward(
        upstream: _Array,
        logits: _Array,
        target: _Array,
        weight: _Maybe,
        lse: _Array,
        /,
        *options_outputs_workspace_place: Any,
    ) -> None: ...  # outputs: grad, grad_target
    @staticmethod
    def nll_loss(
        logp: _Array, target: _Array, weight: _Maybe, /, *options_outputs_workspace_place: Any
    ) -> None: ...  # outputs: loss, flag
    @staticmethod
    def nll_loss_backward(
        upstream: _Array, logp: _Array, target: _Array, weight: _Maybe, /, *options_output_workspace_place: Any
    ) -> None: ...  # output: grad

    # elements
    @staticmethod
    def scale(x: _Array, factor: _Array, device: int, stream: int, /) -> None: ...
    @staticmethod
    def put(to: _Array, x: float, device: int, stream: int, /) -> None: ...
    @staticmethod
    def copy(source: _Array, to: _Array, index: _Maybe, ignored: int, device: int, stream: int, /) -> None: ...

    # matrices: out = activation(a·bᵀ + bias), or out += a·bᵀ
    @staticmethod
    def matmul(
        a: _Array,
        b: _Array,
        bias: _Maybe,
        pre: _Maybe,
        out: _Array,
        activation: int,
        accumulate: bool,
        device: int,
        stream: int,
        /,
    ) -> None: ...
    @staticmethod
    def hopper_takes(  # whether the same call of matmul is the kernel for Hopper
        a: _Array,
        b: _Array,
        bias: _Maybe,
        pre: _Maybe,
        out: _Array,
        activation: int,
        accumulate: bool,
        device: int,
        stream: int,
        /,
    ) -> bool: ...
    @staticmethod
    def dz(
        grad: _Array,
        saved: _Maybe,
        dz: _Maybe,
        bias_grad: _Maybe,
        activation: int,
        workspace: int,
        device: int,
        stream: int,
        /,
    ) -> None: ...
    @staticmethod
    def dz_workspace_bytes(grad: _Array, saved: _Maybe, dz: _Maybe, bias_grad: _Maybe, activation: int, /) -> int: ...

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
