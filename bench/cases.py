"""The launchers of tilegrad.kernels on typical shapes, chosen so that every kernel and configuration is reached.

Import this where bench.compiling may be imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilegrad import kernels
from tilegrad.kernels import configs
from tilegrad.kernels.activation import activation_of
from tilegrad.kernels.log_softmax import softmax as softmax_launcher
from tilegrad.kernels.log_softmax import softmax_backward as softmax_backward_launcher
from tilegrad.kernels.matmul_gluon import matmul_gluon
from tilegrad.reference import LossOptions

from . import coverage
from .compiling import Case, Launch, array, chip_now, compiled, launches, reading_of, rows_of
from .rules import Row


def with_workspace(function: str, *args: Any, **keywords: Any) -> Callable[[], None]:
    """A call of a launcher, with the workspace that its companion asks for."""

    def call() -> None:
        needed = getattr(kernels, f"{function}_workspace")(*args, **keywords)
        workspace = {name: array(*shape, dtype=dtype) for name, (shape, dtype) in needed.items()}
        getattr(kernels, function)(*args, **keywords, workspace=workspace)

    return call


def turned(rows: int, columns: int, dtype: str) -> Any:
    """(rows, columns), stored the other way round."""
    return array(rows, columns, dtype=dtype, strides=(1, rows))


def odd(rows: int, columns: int, dtype: str) -> Any:
    """(rows, columns) whose rows begin anywhere."""
    return array(rows, columns, dtype=dtype, strides=(columns + 1, 1), offset=1)


def gaps(rows: int, columns: int, dtype: str) -> Any:
    """Aligned rows in blocks of 128, as many again left out between them: no matrix for a bulk copy."""
    strides = (2 * 128 * columns, columns, 1)
    return array(rows // 128, 128, columns, dtype=dtype, strides=strides)


def scattered(rows: int, columns: int, dtype: str) -> Any:
    """Rows of three dimensions, none of which continues another."""
    return array(rows // 32, 4, 8, columns, dtype=dtype, strides=(128 * columns, 32 * columns, 2 * columns, 1))


def scattered_after(rows: int, columns: int, dtype: str) -> Any:
    """The same with the columns in the second dimension, as classes are."""
    return array(rows // 32, columns, 4, 8, dtype=dtype, strides=(128 * columns, 128, 32, 2))


# --- softmax ----------------------------------------------------------------------------------------------------------


def softmax(rows: int, columns: int, dtype: str = "bfloat16", log: bool = True, of: Callable[..., Any] = array) -> Case:
    x, out = of(rows, columns, dtype=dtype), of(rows, columns, dtype=dtype)
    return Case(
        lambda: softmax_launcher(x, -1, log, out=out), rows * columns, of is array, tuned=log and dtype == "bfloat16"
    )


def softmax_backward(
    rows: int, columns: int, dtype: str = "bfloat16", log: bool = True, of: Callable[..., Any] = array
) -> Case:
    g, y, out = (of(rows, columns, dtype=dtype) for _ in range(3))
    return Case(lambda: softmax_backward_launcher(g, y, -1, log, out=out), rows * columns, of is array)


# --- cross-entropy and negative log-likelihood ------------------------------------------------------------------------

NAMED = LossOptions()
FULL = LossOptions(label_smoothing=0.1, z_loss=1e-4, softcap=30.0)
EACH = LossOptions(reduction="none")
CAPPED = LossOptions(softcap=30.0)


def cross_entropy(
    rows: int, classes: int, dtype: str = "bfloat16", o: LossOptions = NAMED, *, grad: bool = True,
    statistics: bool = False, probabilities: bool = False, weighted: bool = False, of: Callable[..., Any] = array,
) -> Case:  # fmt: skip
    logits = of(rows, classes, dtype=dtype)
    each = logits.shape[:1] + logits.shape[2:]
    call = with_workspace(
        "cross_entropy", logits, logits if probabilities else array(*each, dtype="int64"),
        array(classes, dtype=dtype) if weighted else None, o,
        loss=array(*(each if o.reduction == "none" else ()), dtype=dtype),
        lse=array(2, *each, dtype="float32") if statistics else None,
        argmax=array(*each, dtype="int64") if statistics else None,
        grad=logits if grad else None, flag=array(1, dtype="bool"),
    )  # fmt: skip
    return Case(call, rows * classes, of is array)


def crossed(samples: int, classes: int) -> Case:
    """Targets and logits whose rows lie in different orders, so that an outer stride is 1."""
    logits, target = (
        array(samples, classes, 3, 5),
        array(samples, 3, 5, dtype="int64", strides=(1, samples, 3 * samples)),
    )
    call = with_workspace(
        "cross_entropy", logits, target, None, EACH,
        loss=array(samples, 3, 5), lse=array(2, samples, 3, 5, dtype="float32"), argmax=None, grad=None, flag=None,
    )  # fmt: skip
    return Case(call, samples * classes * 15, contiguous=False)


def cross_entropy_backward(
    rows: int, classes: int, dtype: str = "bfloat16", o: LossOptions = NAMED, *,
    probabilities: bool = False, of: Callable[..., Any] = array,
) -> Case:  # fmt: skip
    logits = of(rows, classes, dtype=dtype)
    call = with_workspace(
        "cross_entropy_backward", array(*((rows,) if o.reduction == "none" else ()), dtype=dtype), logits,
        logits if probabilities else array(rows, dtype="int64"), None, array(2, rows, dtype="float32"), o,
        grad=logits, grad_target=logits if probabilities else None,
    )  # fmt: skip
    return Case(call, rows * classes, of is array)


def nll_loss(rows: int, classes: int, dtype: str = "bfloat16", o: LossOptions = NAMED) -> Case:
    call = with_workspace(
        "nll_loss", array(rows, classes, dtype=dtype), array(rows, dtype="int64"), None, o,
        loss=array(*((rows,) if o.reduction == "none" else ()), dtype=dtype), flag=array(1, dtype="bool"),
    )  # fmt: skip
    return Case(call, rows * classes)


def nll_loss_backward(
    rows: int, classes: int, dtype: str = "bfloat16", o: LossOptions = NAMED, of: Callable[..., Any] = array
) -> Case:
    logp = of(rows, classes, dtype=dtype)
    call = with_workspace(
        "nll_loss_backward", array(*((rows,) if o.reduction == "none" else ()), dtype=dtype), logp,
        array(rows, dtype="int64"), None, o, grad=logp,
    )  # fmt: skip
    return Case(call, rows * classes, of is array)


def scale(count: int, dtype: str = "bfloat16") -> Case:
    return Case(lambda: kernels.scale(array(dtype=dtype), inplace=array(count, dtype=dtype)), count)


# --- linear -----------------------------------------------------------------------------------------------------------


def linear(
    rows: int, features: int, out_features: int, dtype: str = "bfloat16", activation: str | None = None, *,
    gated: bool = False, pre: bool = False, tf32: bool = False, of: Callable[..., Any] = array,
    input_of: Callable[..., Any] | None = None,
) -> Case:  # fmt: skip
    width = out_features * 2 if gated else out_features
    x, w, b = (input_of or of)(rows, features, dtype=dtype), of(width, features, dtype=dtype), array(width, dtype=dtype)
    out, kept = array(rows, out_features, dtype=dtype), array(rows, width, dtype=dtype) if pre else None
    call = lambda: kernels.linear(x, w, b, activation, out=out, pre=kept, tf32=tf32)  # noqa: E731
    return Case(call, rows * out_features, of is array and input_of is None and out_features % 16 == 0)


def linear_backward(
    rows: int, features: int, out_features: int, dtype: str = "bfloat16", activation: str | None = None, *,
    gated: bool = False, tf32: bool = False, only_bias: bool = False, of: Callable[..., Any] = array,
) -> Case:  # fmt: skip
    width = out_features * 2 if gated else out_features
    x, w = of(rows, features, dtype=dtype), of(width, features, dtype=dtype)
    call = with_workspace(
        "linear_backward", array(rows, out_features, dtype=dtype), x, w,
        array(rows, width, dtype=dtype) if activation else None, activation,
        grad_input=None if only_bias else array(rows, features, dtype=dtype),
        grad_weight=None if only_bias else array(width, features, dtype=dtype),
        grad_bias=array(width, dtype=dtype), tf32=tf32,
    )  # fmt: skip
    return Case(call, rows * out_features, of is array)


def gluon(rows: int, features: int, out_features: int, tile: configs.GluonTile) -> Case:
    """The product that no launcher chooses before it is measured."""
    x, w, out = array(rows, features), array(out_features, features), array(rows, out_features)

    def call() -> None:
        operands, activation = [(x, True), (w, True)], activation_of("gelu").of
        bias = array(out_features)
        matmul_gluon(operands, out, activation=activation, bias=bias, pre=out, tile=tile, chip=chip_now())

    return Case(call, rows * out_features, chips=("sm_90",))


# --- linear + cross-entropy -------------------------------------------------------------------------------------------


def linear_cross_entropy(
    samples: int, features: int, classes: int, dtype: str = "bfloat16", o: LossOptions = NAMED, *, losses: int = 1,
    probabilities: bool = False, statistics: bool = False, tf32: bool = False,
) -> Case:  # fmt: skip
    x, w, b = (
        array(samples, features, dtype=dtype),
        array(classes, losses, features, dtype=dtype),
        array(classes, losses, dtype=dtype),
    )
    each = (samples, losses)
    target = array(samples, classes, losses, dtype=dtype) if probabilities else array(*each, dtype="int64")
    call = with_workspace(
        "linear_cross_entropy", x, w, b, target, None, o, upstream=None,
        loss=array(*(each if o.reduction == "none" else ()), dtype=dtype),
        lse=array(2, *each, dtype="float32") if statistics else None,
        argmax=array(*each, dtype="int64") if statistics else None,
        grad_input=x, grad_weight=w, grad_bias=b, grad_target=target if probabilities else None,
        flag=array(1, dtype="bool"), tf32=tf32,
    )  # fmt: skip
    return Case(
        call,
        samples * classes * losses,
        losses == 1 and features % 16 == 0,
        tuned=o == NAMED and dtype == "bfloat16" and not probabilities,
    )


# --- the table --------------------------------------------------------------------------------------------------------

CASES = {
    "log_softmax 256": softmax(8192, 256),
    "log_softmax 1024": softmax(8192, 1024),
    "log_softmax 2048": softmax(8192, 2048),
    "log_softmax 4096": softmax(8192, 4096),
    "log_softmax 8192": softmax(8192, 8192),
    "log_softmax 16384": softmax(8192, 16384),
    "log_softmax 32768": softmax(8192, 32768),
    "log_softmax 128256": softmax(8192, 128256),
    "log_softmax 32 turned": softmax(8192, 32, of=turned),
    "log_softmax 256 turned": softmax(8192, 256, of=turned),
    "log_softmax 1024 turned": softmax(8192, 1024, of=turned),
    "log_softmax 2048 turned": softmax(8192, 2048, of=turned),
    "log_softmax 8192 turned": softmax(8192, 8192, of=turned),
    "log_softmax 4096 scattered": softmax(8192, 4096, of=scattered),
    "log_softmax 128256 scattered": softmax(8192, 128256, of=scattered),
    "log_softmax 4095 odd": softmax(8192, 4095, of=odd),
    "log_softmax 4096 fp32": softmax(8192, 4096, "float32"),
    "log_softmax 4096 fp64": softmax(8192, 4096, "float64"),
    "softmax 4096": softmax(8192, 4096, log=False),
    "log_softmax_backward 256": softmax_backward(8192, 256),
    "log_softmax_backward 1024": softmax_backward(8192, 1024),
    "log_softmax_backward 2048": softmax_backward(8192, 2048),
    "log_softmax_backward 4096": softmax_backward(8192, 4096),
    "log_softmax_backward 8192": softmax_backward(8192, 8192),
    "log_softmax_backward 16384": softmax_backward(8192, 16384),
    "log_softmax_backward 32768": softmax_backward(8192, 32768),
    "log_softmax_backward 128256": softmax_backward(8192, 128256),
    "log_softmax_backward 32 turned": softmax_backward(8192, 32, of=turned),
    "log_softmax_backward 256 turned": softmax_backward(8192, 256, of=turned),
    "log_softmax_backward 1024 turned": softmax_backward(8192, 1024, of=turned),
    "log_softmax_backward 2048 turned": softmax_backward(8192, 2048, of=turned),
    "log_softmax_backward 8192 turned": softmax_backward(8192, 8192, of=turned),
    "log_softmax_backward 4096 scattered": softmax_backward(8192, 4096, of=scattered),
    "softmax_backward 4096 fp32": softmax_backward(8192, 4096, "float32", log=False),
    "cross_entropy 4096": cross_entropy(8192, 4096),
    "cross_entropy 4096 loss only": cross_entropy(8192, 4096, grad=False),
    "cross_entropy 8192": cross_entropy(8192, 8192),
    "cross_entropy 16384": cross_entropy(8192, 16384),
    "cross_entropy 32768": cross_entropy(8192, 32768),
    "cross_entropy 128256": cross_entropy(8192, 128256),
    "cross_entropy 1000 all options": cross_entropy(8192, 1000, o=FULL, statistics=True, weighted=True),
    "cross_entropy 1000 probabilities": cross_entropy(8192, 1000, probabilities=True),
    "cross_entropy 4096 fp32": cross_entropy(8192, 4096, "float32"),
    "cross_entropy 4096 fp64": cross_entropy(8192, 4096, "float64"),
    "cross_entropy 16384 fp32": cross_entropy(8192, 16384, "float32"),
    "cross_entropy 8192 capped": cross_entropy(8192, 8192, o=CAPPED),
    "cross_entropy 16384 capped": cross_entropy(8192, 16384, o=CAPPED),
    "cross_entropy 1024 capped fp64": cross_entropy(8192, 1024, "float64", CAPPED),
    "cross_entropy 2048 capped fp64": cross_entropy(8192, 2048, "float64", CAPPED),
    "cross_entropy 8192 capped fp64": cross_entropy(8192, 8192, "float64", CAPPED),
    "cross_entropy 64 turned capped": cross_entropy(8192, 64, o=CAPPED, of=turned),
    "cross_entropy 128 turned capped": cross_entropy(8192, 128, o=CAPPED, of=turned),
    "cross_entropy 1024 turned capped": cross_entropy(8192, 1024, o=CAPPED, of=turned),
    "cross_entropy 32 turned capped fp64": cross_entropy(8192, 32, "float64", CAPPED, of=turned),
    "cross_entropy 64 turned capped fp64": cross_entropy(8192, 64, "float64", CAPPED, of=turned),
    "cross_entropy 1024 turned capped fp64": cross_entropy(8192, 1024, "float64", CAPPED, of=turned),
    "cross_entropy 256 scattered": cross_entropy(8192, 256, of=scattered_after),
    "cross_entropy 64 crossed": crossed(512, 64),
    "cross_entropy 4096 crossed": crossed(512, 4096),
    "cross_entropy 4096 odd": cross_entropy(8192, 4095, of=odd),
    "cross_entropy 64 turned": cross_entropy(8192, 64, of=turned),
    "cross_entropy 256 turned": cross_entropy(8192, 256, of=turned),
    "cross_entropy 256 turned fp32": cross_entropy(8192, 256, "float32", of=turned),
    "cross_entropy 1024 turned fp32": cross_entropy(8192, 1024, "float32", of=turned),
    "cross_entropy 4096 turned": cross_entropy(8192, 4096, of=turned),
    "cross_entropy_backward 4096": cross_entropy_backward(8192, 4096),
    "cross_entropy_backward 128256 each": cross_entropy_backward(8192, 128256, o=EACH),
    "nll_loss 4096": nll_loss(8192, 4096),
    "nll_loss 4096 each": nll_loss(8192, 4096, o=EACH),
    "nll_loss_backward 4096": nll_loss_backward(8192, 4096),
    "nll_loss_backward 4096 turned": nll_loss_backward(8192, 4096, of=turned),
    "scale bf16": scale(1 << 24),
    "linear": linear(8192, 4096, 4096),
    "linear gelu": linear(8192, 4096, 4096, activation="gelu", pre=True),
    "linear tf32": linear(8192, 4096, 4096, "float32", tf32=True),
    "linear fp32": linear(8192, 4096, 4096, "float32"),
    "linear fp64": linear(1024, 1024, 1024, "float64"),
    "linear odd": linear(8192, 4095, 4096, of=odd),
    "linear gaps": linear(8192, 4096, 4096, input_of=gaps),
    "linear gaps tf32": linear(8192, 4096, 4096, "float32", tf32=True, input_of=gaps),
    "linear odd tf32": linear(8192, 4095, 4096, "float32", tf32=True, of=odd),
    "linear to 4095": linear(8192, 4096, 4095),
    "linear to 4095 tf32": linear(8192, 4096, 4095, "float32", tf32=True),
    "linear swiglu": linear(8192, 4096, 4096, activation="swiglu", gated=True),
    "linear_backward gelu": linear_backward(8192, 4096, 4096, activation="gelu"),
    "linear_backward bias": linear_backward(8192, 4096, 4096, only_bias=True),
    "linear_cross_entropy bf16": linear_cross_entropy(8192, 4096, 128256),
    "linear_cross_entropy odd": linear_cross_entropy(8192, 4095, 32000, o=FULL, statistics=True),
    "linear_cross_entropy fp32 all options": linear_cross_entropy(8192, 2048, 32000, "float32", FULL, statistics=True),
    "linear_cross_entropy fp64": linear_cross_entropy(1024, 512, 1000, "float64"),
    "linear_cross_entropy probabilities": linear_cross_entropy(8192, 1024, 1000, probabilities=True, losses=2),
    "linear_cross_entropy probabilities fp32": linear_cross_entropy(1024, 512, 1024, "float32", probabilities=True),
    "linear_cross_entropy probabilities fp64": linear_cross_entropy(1024, 512, 1024, "float64", probabilities=True),
}
CASES |= {f"gluon {t.block_m}×{t.block_n}": gluon(8192, 4096, 8192, t) for t in configs.GLUON_TILES}

# More than 2³¹ elements, with strides that differ from the sizes.
HUGE = {
    "log_softmax": softmax(1 << 20, 4096),
    "log_softmax turned": softmax(1 << 20, 4096, of=turned),
    "log_softmax_backward": softmax_backward(1 << 20, 4096),
    "log_softmax long": softmax(1 << 15, 1 << 18),
    "log_softmax_backward long": softmax_backward(1 << 15, 1 << 18),
    "cross_entropy": cross_entropy(1 << 20, 4096, statistics=True),
    "cross_entropy long": cross_entropy(1 << 15, 1 << 18),
    "cross_entropy turned": cross_entropy(1 << 20, 4096, of=turned),
    "cross_entropy_backward": cross_entropy_backward(1 << 20, 4096),
    "nll_loss": nll_loss(1 << 20, 4096),
    "nll_loss_backward": nll_loss_backward(1 << 20, 4096),
    "scale": scale(1 << 33),
    "linear": linear(1 << 20, 4096, 4096, activation="gelu", pre=True),
    "linear odd": linear(1 << 20, 4095, 4096, of=odd),
    "linear_backward": linear_backward(1 << 20, 4096, 4096, activation="gelu"),
    "linear_cross_entropy": linear_cross_entropy(1 << 20, 4096, 128256),
}


def names() -> list[str]:
    return list(CASES)


def huge_names() -> list[str]:
    return list(HUGE)


def overflows(name: str, chip: str) -> list[str]:
    """The addresses that a case of HUGE makes out of 32 bits that do not hold them."""
    last: dict[str, tuple[Launch, Any]] = {}  # of each code: the one that is furthest along the arrays
    for launch in launches(HUGE[name].call, chip):
        kernel = compiled(launch, chip)
        last[kernel.metadata.hash] = launch, kernel
    return [line for launch, kernel in last.values() for line in reading_of(kernel, launch).overflows]


def rows(name: str, chip: str) -> list[Row]:
    return rows_of(name, CASES[name], chip) if chip in CASES[name].chips else []


def unreached(chips: list[str]) -> list[str]:
    """The kernels of tilegrad.kernels that no case launches, and the rows of its tables that none runs with."""
    return coverage.unreached({chip: [case for case in CASES.values() if chip in case.chips] for chip in chips})
