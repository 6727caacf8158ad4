"""``tilegrad tune``: which rows of the tables of configurations are the fastest on this GPU.

One call of a problem tells which lookups it makes. Then, for one lookup at a time, the same call is made with each row
that ships for it. A row takes the place of the table's if its output agrees and if it is faster by more than the noise,
twice: among all the rows, and then against the table's alone, so that none is chosen for its luck.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import click

from .. import backend, backends
from .errors import Interrupted, UserError, one_line, user_errors
from .gpu import Gpu, find_gpu

DTYPES = ("bfloat16", "float16", "float32", "float64")

# --- what is run ------------------------------------------------------------------------------------------------------

Call = Callable[[], tuple[Any, ...]]  # its outputs
NEVER_IGNORED = backends.LossOptions(ignore_index=-100)


def _log_softmax(gpu: Gpu, dtype: str, rows: int, columns: int) -> Call:
    x = gpu.normal((rows, columns), dtype)
    return lambda: (backends.softmax(x, 1, True),)


def _log_softmax_backward(gpu: Gpu, dtype: str, rows: int, columns: int) -> Call:
    y, grad = backends.softmax(gpu.normal((rows, columns), dtype), 1, True), gpu.normal((rows, columns), dtype)
    return lambda: (backends.softmax_backward(grad, y, 1, True),)


def _cross_entropy(gpu: Gpu, dtype: str, rows: int, columns: int) -> Call:
    logits, target = gpu.normal((rows, columns), dtype), gpu.below(columns, (rows,))

    def call() -> tuple[Any, ...]:
        made = backends.cross_entropy(logits, target, None, NEVER_IGNORED, True, False)
        return made.loss, *made.grads

    return call


def _cross_entropy_backward(gpu: Gpu, dtype: str, rows: int, columns: int) -> Call:
    logits, target = gpu.normal((rows, columns), dtype), gpu.below(columns, (rows,))
    o = NEVER_IGNORED._replace(reduction="none")
    lse = backends.cross_entropy(logits, target, None, o, False, False).lse
    upstream = gpu.normal((rows,), dtype)
    return lambda: backends.cross_entropy_backward(upstream, logits, target, None, lse, o, (True, False))[:1]


def _linear(gpu: Gpu, dtype: str, rows: int, inputs: int, outputs: int) -> Call:
    x, weight, bias = (gpu.normal(shape, dtype) for shape in ((rows, inputs), (outputs, inputs), (outputs,)))
    return lambda: backends.linear(x, weight, bias, "gelu", True)


def _linear_backward(gpu: Gpu, dtype: str, rows: int, inputs: int, outputs: int) -> Call:
    x, weight, pre, grad = (
        gpu.normal(shape, dtype) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs), (rows, outputs))
    )
    return lambda: backends.linear_backward(grad, x, weight, pre, "gelu", (True, True, True))


def _linear_cross_entropy(gpu: Gpu, dtype: str, rows: int, inputs: int, classes: int) -> Call:
    x, weight = gpu.normal((rows, inputs), dtype), gpu.normal((classes, 1, inputs), dtype)
    target = gpu.below(classes, (rows, 1))

    def call() -> tuple[Any, ...]:
        needs = (True, True, False, False)
        made = backends.linear_cross_entropy(x, weight, None, target, None, NEVER_IGNORED, needs, False)
        return made.loss, *made.grads[:2]

    return call


class Operation(NamedTuple):
    call: Callable[..., Call]  # of a GPU, a dtype, and the sizes
    sizes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]  # measured unless others are given: one for each class of problems


# 256 MiB of bfloat16, which no L2 holds.
_ROWS = tuple((2**27 // columns, columns) for columns in (64, 256, 1024, 2048, 4096, 8192, 16384, 32768))
# Layers of a transformer at a training batch, at a small one, and the head of a classifier.
_LAYERS = ((8192, 4096, 4096), (1024, 1024, 1024), (128, 1024, 16))

OPERATIONS = {
    "log_softmax": Operation(_log_softmax, ("rows", "columns"), _ROWS),
    "log_softmax_backward": Operation(_log_softmax_backward, ("rows", "columns"), _ROWS),
    "cross_entropy": Operation(_cross_entropy, ("rows", "columns"), _ROWS),
    "cross_entropy_backward": Operation(_cross_entropy_backward, ("rows", "columns"), _ROWS),
    "linear": Operation(_linear, ("rows", "inputs", "outputs"), _LAYERS),
    "linear_backward": Operation(_linear_backward, ("rows", "inputs", "outputs"), _LAYERS),
    "linear_cross_entropy": Operation(_linear_cross_entropy, ("rows", "inputs", "classes"), ((8192, 4096, 128256),)),
}


class Problem(NamedTuple):
    op: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.op} {'x'.join(map(str, self.shape))} {self.dtype}"


def problems(ops: Iterable[str], shapes: Iterable[tuple[int, ...]], dtypes: Iterable[str]) -> list[Problem]:
    """What is to be measured: each operation on each shape, its own ones if none is given.

    Raises:
        UserError: a shape that none of the operations takes.
    """
    shapes, dtypes, ops = list(shapes), list(dtypes), list(ops)
    for shape in shapes:
        if not any(len(OPERATIONS[op].sizes) == len(shape) for op in ops):
            takes = "; ".join(f"{op}: {'x'.join(map(str.upper, OPERATIONS[op].sizes))}" for op in ops)
            raise UserError(f"--shape {'x'.join(map(str, shape))}: expected the sizes of an operation ({takes})")
    found = []
    for op in ops:
        fitting = [s for s in shapes if len(s) == len(OPERATIONS[op].sizes)] if shapes else OPERATIONS[op].shapes
        found += [Problem(op, shape, dtype) for shape in fitting for dtype in dtypes]
    return found


# --- how it is measured -----------------------------------------------------------------------------------------------

WARM = 5  # calls that are not counted: compilation, clocks
COUNTED = 40
MARGIN = 0.98  # of the table's time: what is less of a gain than 2% is not worth a row of its own

# How far outputs may differ, over the largest value: a few of the dtype's roundings there, as rows of different tiles
# sum in another order. A tile that is missing, or added twice, is far off.
TOLERANCE = {"bfloat16": 2**-6, "float16": 2**-9, "float32": 1e-4, "float64": 1e-10}


class Times(NamedTuple):
    """Quartiles, in microseconds."""

    low: float
    median: float
    high: float


def interleaved(gpu: Gpu, calls: list[Callable[[], Any]]) -> list[Times]:
    """The times of calls that take turns, in an order that changes: what drifts, drifts for all of them."""
    taken: list[list[float]] = [[] for _ in calls]
    order, draw = list(range(len(calls))), random.Random(0)
    for turn in range(WARM + COUNTED):
        draw.shuffle(order)
        for i in order:
            time = gpu.time(calls[i])
            if turn >= WARM:
                taken[i].append(time)
    return [Times(*statistics.quantiles(times, n=4)) for times in taken]


def is_faster(one: Times, other: Times) -> bool:
    """By more than the margin, and by more than the noise: three quarters of one below three quarters of the other."""
    return one.median < MARGIN * other.median and one.high < other.low


class Verdict(NamedTuple):
    key: tuple[Any, ...]  # of the lookup
    rows: int  # that ship for it
    table: Times
    row: Any  # that is the faster one, with its times; None: the table's is kept
    best: Times
    refused: list[str]  # rows that do not run, or whose output is another one, and why


def judge(gpu: Gpu, problem: Problem, call: Call, chip: str, key: tuple[Any, ...]) -> Verdict:
    """Every row that ships for a lookup, on one problem; the others of its lookups have the rows of the tables."""
    from ..kernels import tuning

    def with_row(row: Any) -> Call:
        def run() -> tuple[Any, ...]:
            with tuning.using(chip, {key: row}):
                return call()

        return run

    table, *others = tuning.candidates(chip, key)
    expected, refused, rows = with_row(table)(), [], [table]
    for row in others:
        reason = _why_refused(gpu, with_row(row), expected, TOLERANCE[problem.dtype])
        rows += [row] if reason is None else []
        refused += [] if reason is None else [f"{_said(row)} {reason}"]
    del expected
    times = interleaved(gpu, [with_row(row) for row in rows])
    best = min(range(len(rows)), key=lambda i: times[i].median)
    if is_faster(times[best], times[0]):
        again = interleaved(gpu, [with_row(table), with_row(rows[best])])
        if is_faster(again[1], again[0]):
            return Verdict(key, 1 + len(others), again[0], rows[best], again[1], refused)
    return Verdict(key, 1 + len(others), times[0], None, times[0], refused)


def _why_refused(gpu: Gpu, run: Call, expected: tuple[Any, ...], tolerance: float) -> str | None:
    try:
        found = run()
    except Exception as error:  # Triton's own kinds, for a row that the GPU has no room for
        return f"does not run ({type(error).__name__}: {one_line(str(error))})"
    worst = max(gpu.difference(x, y) for x, y in zip(found, expected, strict=True) if x is not None)
    return None if worst <= tolerance else f"gives another output (by {worst:.1e} of the largest value)"


# --- the command ------------------------------------------------------------------------------------------------------


class Shape(click.ParamType):
    """Positive sizes with "x" between them."""

    name = "shape"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """``"8192x4096"`` → (8192, 4096)."""
        words = value.split("x")
        if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
            self.fail(f"'{value}', expected whole numbers above 0 with x between them, such as 8192x4096", param, ctx)
        return tuple(map(int, words))


@click.command()
@click.option("--op", "ops", multiple=True, type=click.Choice(list(OPERATIONS)), help="[default: all]", metavar="NAME")
@click.option("--shape", "shapes", multiple=True, type=Shape(), help="Sizes, such as 8192x4096.  [default: several]")
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(DTYPES), default=["bfloat16"])
@click.option("--dry-run", is_flag=True, help="Show what would be measured, and what is stored.")
@click.option("--clear", is_flag=True, help="Forget what was measured on this model of GPU.")
def tune(
    ops: tuple[str, ...], shapes: tuple[tuple[int, ...], ...], dtypes: tuple[str, ...], dry_run: bool, clear: bool
) -> None:
    """Find the fastest configurations for this GPU, and keep them.

    Nothing is tuned unless this is run: calls use the tables that ship, or what is stored here in their place. Only
    rows of the tables are tried, on arrays of its own. Shapes are ROWSxCOLUMNS, or ROWSxINPUTSxOUTPUTS for linear
    layers; a result serves every shape of the same class. Options may be repeated.
    """
    asked = problems(ops or OPERATIONS, shapes, dtypes)
    gpu = find_gpu()
    _check_triton()
    if clear:
        _clear(gpu)
        return
    try:
        with backend("triton"):
            _tune(gpu, asked, dry_run)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; what was found until then is stored") from None


def _check_triton() -> None:
    for name, can_run, why in backends.describe():
        if name == "triton" and not can_run:
            raise UserError(why)


def _clear(gpu: Gpu) -> None:
    from ..kernels import tuning

    path = tuning.clear(gpu.name)
    click.echo(f"nothing was stored for {gpu.name}" if path is None else f"removed {path}")


def _tune(gpu: Gpu, asked: list[Problem], dry_run: bool) -> None:
    from ..kernels import launch, tuning

    chip = launch.chip_of(launch.view(gpu.normal((1,), "float32"))).name
    try:
        stored = {result.key: result for result in tuning.read(gpu.name, chip)}
    except tuning.Unusable as error:
        click.echo(f"{error}: nothing of it is kept", err=True)
        stored = {}
    click.echo(f"{gpu.name}, {chip}: {len(stored)} stored in {tuning.path_of(gpu.name)}")
    for problem, call, keys in _lookups(gpu, asked, chip):
        click.echo(str(problem))
        for key in keys:
            ships = tuning.candidates(chip, key)
            if dry_run or len(ships) < 2:
                _list(key, ships, stored.get(key))
                continue
            verdict = judge(gpu, problem, call, chip, key)
            _report(verdict)
            stored.pop(key, None)
            if verdict.row is not None:
                stored[key] = tuning.Result(key, verdict.row, _measured(problem, verdict))
            tuning.write(gpu.name, chip, stored.values())  # now: Ctrl-C keeps what is done


def _lookups(gpu: Gpu, asked: list[Problem], chip: str) -> Iterator[tuple[Problem, Call, list[tuple[Any, ...]]]]:
    """Each problem, its call, and the lookups of that call which no problem before it made."""
    from ..kernels import tuning

    seen: set[tuple[Any, ...]] = set()
    for problem in asked:
        with user_errors(TypeError, ValueError, RuntimeError, MemoryError):
            call = OPERATIONS[problem.op].call(gpu, problem.dtype, *problem.shape)
            with tuning.asked(chip) as keys:
                call()
        new = [key for key in keys if key not in seen]
        seen.update(new)
        yield problem, call, new


def _named(key: tuple[Any, ...]) -> str:
    from ..kernels import tuning

    name, *problem = key
    return " ".join([name, *(f"{n}={v}" for n, v in zip(tuning.TUNABLE[name].problem, problem, strict=True))])


def _said(row: Any) -> str:
    return "(" + " ".join(f"{name}={value}" for name, value in row._asdict().items()) + ")"


def _list(key: tuple[Any, ...], ships: list[Any], stored: Any) -> None:
    table = f", table: {_said(ships[0])}" if ships else ""
    kept = f"; stored: {_said(stored.row)}" if stored else ""
    click.echo(f"  {_named(key)}: {len(ships)} to choose from{table}{kept}")


def _report(verdict: Verdict) -> None:
    before, after = verdict.table.median, verdict.best.median
    result = "the table's row stays" if verdict.row is None else f"{before / after:.3f}×, {_said(verdict.row)}"
    click.echo(f"  {_named(verdict.key)}: best of {verdict.rows}, {before:.1f} → {after:.1f} µs: {result}")
    for line in verdict.refused:
        click.echo(f"    refused: {line}")


def _measured(problem: Problem, verdict: Verdict) -> dict[str, Any]:
    return {
        "op": problem.op,
        "shape": list(problem.shape),
        "dtype": problem.dtype,
        "table_us": round(verdict.table.median, 2),
        "us": round(verdict.best.median, 2),
    }
