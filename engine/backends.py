"""From a fused operation and its arrays to the implementation that runs it: the only place that chooses a backend.

The functions here take NumPy, CuPy or torch arrays (one kind per call, checked by the layers above), make the outputs
with the library that owns the inputs, and hand both to a backend. They know nothing of autograd: the Tensor's
(fused.py) and torch's (torch/) each call them. A backend is a module with the functions of reference.py; what it cannot
run it says. The workspace that a function needs is listed by its companion, ``<function>_workspace`` with the same
arguments, and made here, so that a kernel launcher allocates nothing.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from . import reference
from .activations import ACTIVATIONS
from .reference import LossOptions
from .storage import cuda_device_count, cupy, is_cupy, is_floating, on_device_of, wide_dtype
from .storage import from_dlpack as view_of

__all__ = ["LossOptions", "backend", "describe", "synchronize"]

NAMES = ("reference", "cpu", "triton", "cuda")

# What each compiled backend needs, what that is, and the module with its functions.
_PARTS = {
    "cpu": ("tilegrad._C", "compiled CPU kernels", "tilegrad.cpu"),
    "triton": ("tilegrad.kernels", "Triton kernels", "tilegrad.kernels"),
    "cuda": ("tilegrad._C", "CUDA C++ kernels", "tilegrad.cuda_kernels"),
}


# --- the choice -------------------------------------------------------------------------------------------------------


class _Chosen(threading.local):
    name: str | None = None


_chosen = _Chosen()
_asked = os.environ.get("TILEGRAD_BACKEND") or "auto"  # looked at once: a step asks for it many times


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the fused operations inside on "reference", "cpu", "triton" or "cuda", or let "auto" choose by table.

    The variable ``TILEGRAD_BACKEND`` does the same for a whole program.

    Raises:
        ValueError: an unknown name. RuntimeError: a backend that this installation or machine cannot run.
    """
    before, _chosen.name = _chosen.name, _known(name, "backend")
    try:
        if name != "auto":
            _implementation(name)
        yield
    finally:
        _chosen.name = before


def _known(name: str, where: str) -> str:
    if name not in (*NAMES, "auto"):
        raise ValueError(f'{where}: expected "auto", {", ".join(map(repr, NAMES))}, got {name!r}')
    return name


def current() -> str:
    """The name of the backend that was asked for: the block's, the environment's, or "auto"."""
    return _chosen.name or (_asked if _asked == "auto" else _known(_asked, "TILEGRAD_BACKEND"))


def _why_not(name: str) -> str | None:
    """Why a backend cannot run here, and what would mend it, in a sentence; None if it can."""
    if name == "reference":
        return None
    module, what, _ = _PARTS[name]
    if not _installed(module):
        return f"backend {name!r} cannot run: this installation has no {what} ({module}); install a build that has them"
    if name == "cuda":
        reason = importlib.import_module("tilegrad.cuda_kernels").why_not()
        return None if reason is None else f"backend 'cuda' cannot run: {reason}"
    return _why_not_triton() if name == "triton" else None


@functools.cache
def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def _why_not_triton() -> str | None:
    if not _installed("triton"):
        return "backend 'triton' cannot run: Triton is not installed; pip install tilegrad[gpu]"
    try:
        launch = importlib.import_module("tilegrad.kernels.launch")
    except ImportError as error:  # a version that the kernels are not made for
        return f"backend 'triton' cannot run: {error}"
    torch = sys.modules.get("torch")
    if launch.interpreting() or cuda_device_count() or (torch is not None and torch.cuda.is_available()):
        return None
    return "backend 'triton' cannot run: neither CuPy nor torch finds a GPU (TRITON_INTERPRET=1 interprets the kernels)"


def _implementation(name: str) -> ModuleType:
    reason = _why_not(name)
    if reason is not None:
        raise RuntimeError(reason)
    return reference if name == "reference" else importlib.import_module(_PARTS[name][2])


def _automatic(x: Any) -> str:
    """The backend of a call that is left to us."""
    name = "cpu" if _on_cpu(x) else "triton"
    return name if _why_not(name) is None else "reference"


@functools.cache
def _compiled_for_cpu() -> Any:
    """The module with the CPU's kernels; None where there are none."""
    return _implementation("cpu") if _why_not("cpu") is None else None


def _for(x: Any) -> Any:
    """Where the operations on arrays like ``x`` are: the CPU's kernels, which take NumPy arrays as they are and warn of
    nothing, or whatever else is chosen."""
    return _compiled_for_cpu() if type(x) is np.ndarray and takes_plain_calls() else _ELSEWHERE


def takes_plain_calls() -> bool:
    """Whether the kernels of the CPU are there for arrays on the CPU, and nothing else is asked for."""
    return (_chosen.name or _asked) in ("auto", "cpu") and _compiled_for_cpu() is not None


class _Elsewhere:
    def __getattr__(self, operation: str) -> Any:
        return functools.partial(_run, operation)


_ELSEWHERE = _Elsewhere()


def _run(operation: str, *args: Any, **outputs: Any) -> None:
    """Run an operation on the chosen backend, its arrays as that takes them."""
    name = current()
    if name == "auto":
        if operation in _LINEAR and is_cupy(args[0]) and _on_cublaslt(operation, args, outputs):
            return
        name = _automatic(args[0])
    implementation = _implementation(name)
    if name not in ("reference", "cpu"):
        _run_on_addresses(implementation, operation, args, outputs)
        return
    if name == "cpu" and not _on_cpu(args[0]):
        raise RuntimeError("backend 'cpu' cannot run: expected arrays in the memory of the CPU, got arrays of a GPU")
    args, outputs = tuple(map(_viewed, args)), {k: _viewed(v) for k, v in outputs.items()}
    with np.errstate(all="ignore"), on_device_of(args[0]):
        getattr(implementation, operation)(*args, **outputs)


_LINEAR = ("linear", "linear_backward")


def _on_cublaslt(operation: str, args: tuple[Any, ...], outputs: dict[str, Any]) -> bool:
    """Run a linear of CuPy's arrays on cuBLASLt, where that is there and takes it.

    The derivative of an activation is a pass of its own: where there are CUDA C++ kernels, theirs.
    """
    if not _installed("tilegrad._C"):
        return False
    library = importlib.import_module("tilegrad.cublaslt")
    if getattr(library, f"takes_{operation}")(*args, **outputs):
        try:
            _run_on_addresses(library, operation, args, dict(outputs))
        except NotImplementedError:  # this version of it has no kernel for that
            return False
        return True
    derived = operation == "linear_backward" and args[-1] is not None and args[-1] in library.ACTIVATIONS
    if not derived or not library.can_run(args[0]) or _why_not("cuda") is not None:
        return False
    _run_on_addresses(importlib.import_module(_PARTS["cuda"][2]), operation, args, outputs)
    return True


def _run_on_addresses(
    implementation: ModuleType, operation: str, args: tuple[Any, ...], outputs: dict[str, Any]
) -> None:
    """Run an operation on a backend that takes the arrays as they are, and is handed its workspace."""
    listed = getattr(implementation, f"{operation}_workspace", None)
    if listed is not None:
        buffers = listed(*args, **outputs)
        outputs["workspace"] = {k: _empty(args[0], shape, np.dtype(dtype)) for k, (shape, dtype) in buffers.items()}
    getattr(implementation, operation)(*args, **outputs)


def _viewed(x: Any) -> Any:
    """A torch tensor as a NumPy or CuPy array over the same memory; anything else is itself."""
    return view_of(x) if type(x).__module__.partition(".")[0] == "torch" else x


def describe() -> list[tuple[str, bool, str]]:
    """Each backend: its name, whether it can run here, and what it is, or why it cannot and what would mend it."""
    said = {"reference": "plain NumPy or CuPy code, on any machine"}
    if (kernels := _compiled_for_cpu()) is not None:
        said["cpu"] = f"compiled CPU kernels ({kernels.isa()}, {_threads(kernels.num_threads())})"
    return [
        (name, (why := _why_not(name)) is None, why or said.get(name, _PARTS.get(name, ("", "", ""))[1]))
        for name in NAMES
    ]


def describe_cuda() -> list[tuple[str, bool, str]]:
    """What there is for GPUs beside Triton, found or not: the kernels of this build, and NVIDIA's cuBLASLt."""
    if not _installed("tilegrad._C"):
        return [(name, False, "this installation has no tilegrad._C") for name in ("kernels", "cuBLASLt")]
    chips = importlib.import_module("tilegrad._C").cuda_architectures
    compiled = f"CUDA C++ kernels for {', '.join(chips)}" if chips else "this build has no CUDA C++ kernels"
    return [
        ("kernels", bool(chips), compiled),
        ("cuBLASLt", *importlib.import_module("tilegrad.cublaslt").describe()),
    ]


# --- threads ----------------------------------------------------------------------------------------------------------


def set_num_threads(threads: int) -> None:
    """How many threads the kernels of the CPU use, the caller's among them: at the start OMP_NUM_THREADS, or all cores.

    Matrix products are NumPy's, whose BLAS reads OMP_NUM_THREADS once, when NumPy is imported.

    Raises:
        ValueError: less than 1. TypeError: no int.
    """
    if not isinstance(threads, int) or isinstance(threads, bool):
        raise TypeError(f"set_num_threads: expected an int, got {type(threads).__name__}")
    if threads < 1:
        raise ValueError(f"set_num_threads: expected at least 1 thread, got {threads}")
    kernels = _compiled_for_cpu()
    if kernels is not None:
        kernels.set_num_threads(threads)


def get_num_threads() -> int:
    """How many threads the kernels of the CPU use; 1 where there are none."""
    kernels = _compiled_for_cpu()
    return 1 if kernels is None else int(kernels.num_threads())


# --- TF32 -------------------------------------------------------------------------------------------------------------

_PRECISIONS = ("highest", "high", "medium")
_precision = "highest"


def set_float32_matmul_precision(precision: str) -> None:
    """Whether float32 matrix products on a GPU are IEEE ("highest", the default) or may be TF32 ("high", "medium").

    It holds for tilegrad's, CuPy's and NumPy's arrays; for torch tensors torch's own setting does.

    Raises:
        ValueError: any other word.
    """
    global _precision
    if precision not in _PRECISIONS:
        raise ValueError(f"set_float32_matmul_precision: expected one of {_PRECISIONS}, got {precision!r}")
    _precision = precision


def get_float32_matmul_precision() -> str:
    """What was set last."""
    return _precision


def _tf32(x: Any) -> bool:
    if type(x) is not np.ndarray and type(x).__module__.partition(".")[0] == "torch":
        return bool(sys.modules["torch"].backends.cuda.matmul.fp32_precision == "tf32")
    return _precision != "highest"


# --- arrays -----------------------------------------------------------------------------------------------------------


_LARGE = 1 << 18  # elements; from there on, memory that was used before is worth looking for


def _empty(like: Any, shape: tuple[int, ...], dtype: Any = None) -> Any:
    """Uninitialised memory from the library, and on the device, that ``like`` comes from."""
    if isinstance(like, np.ndarray):
        dtype = like.dtype if dtype is None else dtype
        if like.size < _LARGE or _compiled_for_cpu() is None:
            return np.empty(shape, dtype)
        return _compiled_for_cpu().empty(shape, dtype)
    if is_cupy(like):
        with on_device_of(like):
            return cupy().empty(shape, like.dtype if dtype is None else dtype)
    return like.new_empty(shape, dtype=_torch_dtype(dtype) if isinstance(dtype, np.dtype) else dtype)


@functools.cache
def _torch_dtype(dtype: np.dtype) -> Any:
    return getattr(sys.modules["torch"], dtype.name)


def _empty_like(x: Any, wanted: bool = True) -> Any:
    return _empty(x, x.shape) if wanted else None


def _wide_dtype(x: Any) -> np.dtype:
    """The dtype in which the sums over ``x`` are kept."""
    if isinstance(x, np.ndarray) or is_cupy(x):
        return wide_dtype(x.dtype)
    return np.dtype(np.float64 if str(x.dtype) == "torch.float64" else np.float32)


def _on_cpu(x: Any) -> bool:
    return isinstance(x, np.ndarray) or (not is_cupy(x) and x.device.type == "cpu")


# --- targets out of range ---------------------------------------------------------------------------------------------

# Per library and CUDA device: one element, set by a kernel that met a bad target.
_flags: dict[tuple[str, int], Any] = {}


def _check_target(name: str, target: Any, classes: int, o: LossOptions) -> Any:
    """On the CPU an index outside [0, classes) is an IndexError now. On a GPU the kernel makes the row NaN and sets the
    device's flag, which is returned here and looked at by ``synchronize``."""
    if not _on_cpu(target):
        return _flag_of(target)
    target = target if type(target) is np.ndarray else np.asarray(_viewed(target))
    bad = (_compiled_for_cpu() or reference).first_bad_index(target, classes, o.ignore_index)
    if bad is not None:
        raise IndexError(f"{name}: expected targets in [0, {classes}) or ignore_index = {o.ignore_index}, got {bad}")
    return None


def _flag_of(x: Any) -> Any:
    """Made by the library of the targets, so that torch alone is enough for torch tensors."""
    key = ("cupy", int(x.device.id)) if is_cupy(x) else ("torch", int(x.device.index))
    if key not in _flags:
        made = _empty(x, (), np.dtype(np.bool_))
        made[...] = False
        _flags[key] = made
    return _flags[key]


def synchronize() -> None:
    """Wait for the GPU, and raise what its kernels could not.

    Raises:
        IndexError: since the last call, a target outside of [0, C) was handed to a loss on a GPU. Its row's loss and
            gradient were made NaN. With ``TILEGRAD_CHECK=1`` every loss looks at once.
    """
    from .cuda import synchronize as wait

    wait()
    for (library, number), flag in _flags.items():
        if library == "torch":
            sys.modules["torch"].cuda.synchronize(number)
        if bool(flag):
            flag[...] = False
            raise IndexError(f"a target outside of the classes was handed to a loss on device cuda:{number}")


def _checked(flag: Any) -> None:
    if flag is not None and os.environ.get("TILEGRAD_CHECK") == "1":
        synchronize()


# --- the operations ---------------------------------------------------------------------------------------------------


def linear(x: Any, weight: Any, bias: Any, activation: str | None, save: bool) -> tuple[Any, Any]:
    """(…, K), (M, K), (M) → the output (…, M), and with ``save`` what the backward needs of it (None: nothing).

    That is the pre-activation, or the output itself where its sign is enough.
    """
    act = None if activation is None else ACTIVATIONS[activation]
    lead, rows = tuple(x.shape[:-1]), weight.shape[0]
    out = _empty(x, (*lead, rows // 2 if act is not None and act.gated else rows))
    pre = _empty(x, (*lead, rows)) if save and act is not None and not act.by_sign else None
    _for(x).linear(x, weight, bias, activation, out=out, pre=pre, tf32=_tf32(x))
    return out, out if act is not None and act.by_sign else pre


def linear_backward(
    grad: Any, x: Any, weight: Any, saved: Any, activation: str | None, needs: tuple[bool, bool, bool]
) -> tuple[Any, Any, Any]:
    """The gradients of input, weight and bias, each as ``needs`` says (None where it does not)."""
    made = (
        _empty_like(x, needs[0]),
        _empty_like(weight, needs[1]),
        _empty(weight, (weight.shape[0],)) if needs[2] else None,
    )
    _for(grad).linear_backward(
        grad,
        x,
        weight,
        saved,
        activation,
        grad_input=made[0],
        grad_weight=made[1],
        grad_bias=made[2],
        tf32=_tf32(x),
    )
    return made


def softmax(x: Any, dim: int, log: bool, dtype: Any = None) -> Any:
    """softmax or log-softmax along ``dim``; ``dtype`` (of the array's library) converts before."""
    out = _empty(x, tuple(x.shape), x.dtype if dtype is None else dtype)
    if 0 not in x.shape:
        _for(x).softmax(x, dim, log, out=out)
    return out


def softmax_backward(grad: Any, y: Any, dim: int, log: bool, dtype: Any = None) -> Any:
    """The gradient of the input, in ``dtype``, from the output ``y``."""
    out = _empty(y, tuple(y.shape), y.dtype if dtype is None else dtype)
    if 0 not in y.shape:
        _for(grad).softmax_backward(grad, y, dim, log, out=out)
    return out


def has_kernels_for(x: Any) -> bool:
    """Whether activations of these arrays alone have kernels, too: those of the CPU."""
    return _for(x) is not _ELSEWHERE and is_floating(x.dtype)


def activation(x: Any, name: str) -> Any:
    """act(x) of each element, where ``has_kernels_for`` says so."""
    out = _empty(x, x.shape)
    _compiled_for_cpu().activation(x, name, out=out)
    return out


def activation_backward(grad: Any, saved: Any, name: str) -> Any:
    """act'(x)·grad, from the input, or from the output where its sign is enough."""
    out = _empty(grad, grad.shape)
    _compiled_for_cpu().activation_backward(grad, saved, name, out=out)
    return out


def update_together(rule: str, parameters: list[tuple[Any, ...]], *options: Any) -> bool:
    """One step of an optimiser, "sgd" or "adam", on all its parameters in one call; False where there is no kernel for
    that, and nothing was done. Each is (value, gradient, its state in three arrays or None, this step's number)."""
    kernels = _compiled_for_cpu() if current() in ("auto", "cpu") else None
    return kernels is not None and getattr(kernels, rule)(parameters, *options)


def _classes(logits: Any) -> int:
    return int(logits.shape[1 if logits.ndim > 1 else 0])


def _rows(logits: Any) -> tuple[int, ...]:
    return (*logits.shape[:1], *logits.shape[2:]) if logits.ndim > 1 else ()


def nll_loss(logp: Any, target: Any, weight: Any, o: LossOptions) -> Any:
    """(N, C, d…) log-probabilities and (N, d…) class indices → the loss."""
    flag = _check_target("nll_loss", target, _classes(logp), o)
    loss = _empty(logp, _rows(logp) if o.reduction == "none" else ())
    _for(logp).nll_loss(logp, target, weight, o, loss=loss, flag=flag)
    _checked(flag)
    return loss


def nll_loss_backward(upstream: Any, logp: Any, target: Any, weight: Any, o: LossOptions) -> Any:
    """The gradient of the log-probabilities."""
    grad = _empty_like(logp)
    if 0 not in grad.shape:
        _for(upstream).nll_loss_backward(upstream, logp, target, weight, o, grad=grad)
    return grad


class LossResult(NamedTuple):
    """What a cross-entropy made: the loss, and what was asked for beside it (else None)."""

    loss: Any
    lse: Any  # (2, rows): each row's maximum, and the log of the sum above it
    argmax: Any  # (rows)
    grads: tuple[Any, ...]  # for an upstream gradient of 1


def cross_entropy(
    logits: Any, target: Any, weight: Any, o: LossOptions, want_grad: bool, want_stats: bool
) -> LossResult:
    """The loss of logits (C), (N, C) or (N, C, d…), with indices or probabilities as the target.

    ``want_grad`` makes the gradient in the same pass (scalar losses). The logsumexp is kept for a later backward.
    """
    rows = _rows(logits)
    flag = _check_target("cross_entropy", target, _classes(logits), o) if target.ndim < logits.ndim else None
    made = LossResult(
        _empty(logits, rows if o.reduction == "none" else ()),
        _empty(logits, (2, *rows), _wide_dtype(logits)),
        _empty(logits, rows, np.dtype(np.int64)) if want_stats else None,
        (_empty_like(logits, want_grad),),
    )
    _for(logits).cross_entropy(logits, target, weight, o,
        loss=made.loss, lse=made.lse, argmax=made.argmax, grad=made.grads[0], flag=flag,
    )  # fmt: skip
    _checked(flag)
    return made


def cross_entropy_backward(
    upstream: Any, logits: Any, target: Any, weight: Any, lse: Any, o: LossOptions, needs: tuple[bool, bool]
) -> tuple[Any, Any]:
    """The gradients of logits and of class probabilities, each as ``needs`` says. Without ``lse``, which a plain call's
    forward does not make, it is for the kernels of the CPU, as that was."""
    grad, grad_target = _empty_like(logits, needs[0]), _empty_like(target, needs[1])
    if 0 not in logits.shape:
        kernels = _compiled_for_cpu() if lse is None else _for(upstream)
        kernels.cross_entropy_backward(upstream, logits, target, weight, lse, o, grad=grad, grad_target=grad_target)
    return grad, grad_target


def linear_cross_entropy(
    x: Any, linear_weight: Any, linear_bias: Any, target: Any, weight: Any, o: LossOptions,
    needs: tuple[bool, bool, bool, bool], want_stats: bool,
) -> LossResult:  # fmt: skip
    """The loss of x (N, K) under linear_weight (C, D, K), target (N, D) or (N, C, D).

    ``needs`` says which gradients (input, weight, bias, class probabilities) to make in the same pass (scalar losses).
    """
    rows = (x.shape[0], linear_weight.shape[1])
    classes = linear_weight.shape[0]
    flag = _check_target("linear_cross_entropy", target, classes, o) if target.ndim == 2 else None
    lse = _empty(x, (2, *rows), _wide_dtype(x)) if want_stats else None
    argmax = _empty(x, rows, np.dtype(np.int64)) if want_stats else None
    made = LossResult(
        _empty(x, rows if o.reduction == "none" else ()), lse, argmax, _gradients(x, linear_weight, target, needs)
    )
    _run_linear_cross_entropy(x, linear_weight, linear_bias, target, weight, o, None, made, flag)
    _checked(flag)
    return made


def linear_cross_entropy_backward(
    upstream: Any, x: Any, linear_weight: Any, linear_bias: Any, target: Any, weight: Any, o: LossOptions,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Any, ...]:  # fmt: skip
    """The gradients of input, weight, bias and class probabilities, the logits made again chunk by chunk."""
    made = LossResult(None, None, None, _gradients(x, linear_weight, target, needs))
    _run_linear_cross_entropy(x, linear_weight, linear_bias, target, weight, o, upstream, made, None)
    return made.grads


def _gradients(x: Any, linear_weight: Any, target: Any, needs: tuple[bool, bool, bool, bool]) -> tuple[Any, ...]:
    bias = _empty(linear_weight, tuple(linear_weight.shape[:2])) if needs[2] else None
    return _empty_like(x, needs[0]), _empty_like(linear_weight, needs[1]), bias, _empty_like(target, needs[3])


def _run_linear_cross_entropy(
    x: Any, linear_weight: Any, linear_bias: Any, target: Any, weight: Any, o: LossOptions,
    upstream: Any, made: LossResult, flag: Any,
) -> None:  # fmt: skip
    _for(x).linear_cross_entropy(x, linear_weight, linear_bias, target, weight, o, upstream=upstream,
        loss=made.loss, lse=made.lse, argmax=made.argmax, grad_input=made.grads[0], grad_weight=made.grads[1],
        grad_bias=made.grads[2], grad_target=made.grads[3], flag=flag, tf32=_tf32(x),
    )  # fmt: skip


def logsumexp_of(lse: Any) -> Any:
    """(2, rows) as the forward keeps it → (rows): the logsumexp."""
    return lse[0] + lse[1]


def scaled(grad: Any, upstream: Any) -> Any:
    """A gradient that a forward pass made, times the scalar upstream gradient that came: in place, as it was made to be
    handed over. Where the factor is 1 the gradient is not gone over again; on a GPU that is found out on the device."""
    if grad is None or 0 in grad.shape or (_on_cpu(upstream) and upstream.item() == 1):
        return grad
    _for(upstream).scale(upstream, inplace=grad)
    return grad
