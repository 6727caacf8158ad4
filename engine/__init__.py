"""tilegrad: fused kernels for NumPy, CuPy and PyTorch, under a small autograd engine with torch's interface."""

if __name__ != "tilegrad":
    raise ImportError(
        f"the folder {__name__!r} is the source of the package `tilegrad`: run pip install . and then import tilegrad"
    )

# isort: off
import builtins
import functools as _functools
import math as _math

from . import autograd, cuda, data, nn, optim, storage, utils
from .backends import (
    backend, get_float32_matmul_precision, get_num_threads, set_float32_matmul_precision, set_num_threads, synchronize,
)  # fmt: skip
from .checkpoint import load, save
from .creation import (
    arange, as_tensor, bernoulli, empty, empty_like, eye, from_dlpack, from_numpy, full, linspace,
    multinomial, normal, ones, rand, rand_like, randint, randn, randn_like, randperm, tensor, zeros,
)  # fmt: skip
from .functions import (
    abs, add, allclose, ceil, clamp, clip, cos, div, equal, exp, expm1, floor, floor_divide, full_like,
    isclose, isfinite, isinf, isnan, log, log1p, log2, log10, logical_and, logical_not, logical_or,
    logical_xor, maximum, minimum, mul, neg, ones_like, pow, reciprocal, relu, remainder, round, rsqrt,
    sigmoid, sign, sin, sqrt, square, sub, tan, tanh, where, zeros_like,
)  # fmt: skip
from .gradmode import (
    enable_grad, is_grad_enabled, no_grad, set_grad_enabled,
)  # fmt: skip
from .indexing import (
    argsort, bincount, gather, index_select, masked_fill, masked_select, max, min, nonzero, one_hot,
    scatter, sort, topk, unique,
)  # fmt: skip
from .reductions import (
    all, amax, amin, any, argmax, argmin, bmm, cumsum, dot, flip, logsumexp, matmul, mean, mm, mv, norm,
    outer, prod, std, sum, var,
)  # fmt: skip
from .rng import (
    Generator, default_generator, initial_seed, manual_seed, seed,
)  # fmt: skip
from .shaping import (
    broadcast_to, cat, chunk, clone, expand, flatten, hstack, meshgrid, movedim, permute, repeat,
    reshape, split, squeeze, stack, swapaxes, t, transpose, tril, triu, unbind, unflatten, unsqueeze,
    vstack,
)  # fmt: skip
from .storage import (
    bfloat16, bool_, device, dtype, float16, float32, float64, get_default_dtype, int8, int16, int32,
    int64, set_default_dtype, uint8,
)  # fmt: skip
from .tensor import Size, Tensor

__version__ = "0.1.0"

# torch's other names for dtypes, functions and constants
bool, half, float, double = storage.bool_, storage.float16, storage.float32, storage.float64
short, int, long = storage.int16, storage.int32, storage.int64
absolute, concat, concatenate, divide = abs, cat, cat, div
multiply, negative, subtract, softmax, log_softmax = mul, neg, sub, nn.functional.softmax, nn.functional.log_softmax
gt, ge, lt, le, eq, ne = Tensor.gt, Tensor.ge, Tensor.lt, Tensor.le, Tensor.eq, Tensor.ne
inf, nan, pi, e = _math.inf, _math.nan, _math.pi, _math.e
inference_mode = no_grad
FloatTensor, DoubleTensor, HalfTensor, LongTensor, IntTensor, BoolTensor = (
    _functools.partial(tensor, dtype=d) for d in (float32, float64, float16, int64, int32, bool_)
)


def is_tensor(obj: object) -> "builtins.bool":
    """Whether ``obj`` is a ``tilegrad.Tensor``."""
    return isinstance(obj, Tensor)


def numel(input: Tensor) -> "builtins.int":
    """The number of elements."""
    return input.numel()
