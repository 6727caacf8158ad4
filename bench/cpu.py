"""The CPU kernels and the engine on them, timed against torch in the same run.

    python -m bench.cpu                       every case, as a table
    python -m bench.cpu --only "log-softmax"  the cases whose names contain this
    python -m bench.cpu --torch --memory      also our functions on torch's tensors, and peaks of memory
    python -m bench.cpu --write               all of these, into the tables of docs/cpu.md

Each case is one program, written once and run on both libraries. A ratio is torch's time over ours in the same round,
and the table has the median of the rounds' ratios with their quartiles; the exit status is 1 if one is below its aim.
What is done so that the ratios are those of the libraries, and not of their surroundings, is in timing.py. Both sides
allocate their outputs in every call, as training does; only the kernels that are held against a copy write, like the
copy, where they wrote before.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

import tilegrad
from tilegrad import _C
from tilegrad import cpu as kernels
from tilegrad.backends import LossOptions

from . import timing
from .timing import Call, Row

Lib = Any  # tilegrad, torch, or a namespace of what a program takes from them
Program = Callable[[Lib], Call]

# --- the programs -----------------------------------------------------------------------------------------------------


def normal(lib: Lib, *shape: int, scale: float = 1.0) -> Any:
    """Random numbers, the same for every library."""
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    values *= scale
    return lib.from_numpy(values)


def classes(lib: Lib, rows: int, count: int) -> Any:
    return lib.from_numpy(np.random.default_rng(1).integers(0, count, rows))


def log_softmax_forward(lib: Lib, rows: int, columns: int) -> Call:
    F, x = lib.nn.functional, normal(lib, rows, columns).requires_grad_()
    return lambda: F.log_softmax(x, -1)


def log_softmax_backward(lib: Lib, rows: int, columns: int) -> Call:
    x, upstream = normal(lib, rows, columns).requires_grad_(), normal(lib, rows, columns)
    y = lib.nn.functional.log_softmax(x, -1)

    def call() -> None:
        x.grad = None
        y.backward(upstream, retain_graph=True)

    return call


def cross_entropy(lib: Lib, rows: int, columns: int) -> Call:
    F, x, target = lib.nn.functional, normal(lib, rows, columns).requires_grad_(), classes(lib, rows, columns)

    def call() -> None:
        x.grad = None
        F.cross_entropy(x, target).backward()

    return call


def linear_gelu(lib: Lib, rows: int, features: int, width: int) -> Call:
    F = lib.nn.functional
    x, w = normal(lib, rows, features).requires_grad_(), normal(lib, width, features, scale=0.03).requires_grad_()
    b, upstream = normal(lib, width).requires_grad_(), normal(lib, rows, width)

    def call() -> None:
        x.grad = w.grad = b.grad = None
        y = F.linear(x, w, b, activation="gelu") if lib is tilegrad else F.gelu(F.linear(x, w, b))
        y.backward(upstream)

    return call


def linear_bfloat16(lib: Lib, rows: int, features: int, width: int) -> Call:
    x, w, upstream = (
        normal(lib, *shape).to(lib.bfloat16) for shape in ((rows, features), (width, features), (rows, width))
    )
    for factor in (x, w):
        factor.requires_grad_()

    def call() -> None:
        x.grad = w.grad = None
        lib.nn.functional.linear(x, w).backward(upstream)

    return call


def linear_cross_entropy(lib: Lib, rows: int, features: int, width: int) -> Call:
    F = lib.nn.functional
    x, w = normal(lib, rows, features).requires_grad_(), normal(lib, width, features, scale=0.03).requires_grad_()
    target = classes(lib, rows, width)

    def call() -> None:
        x.grad = w.grad = None
        loss = F.linear_cross_entropy(x, w, target) if lib is tilegrad else F.cross_entropy(F.linear(x, w), target)
        loss.backward()

    return call


def mlp_step(lib: Lib, sizes: tuple[int, ...], batch: int, optimizer: str, **options: float) -> Call:
    lib.manual_seed(0)
    layers: list[Any] = []
    for before, after in itertools.pairwise(sizes):
        layers += [lib.nn.Linear(before, after), lib.nn.ReLU()]
    model, loss_of = lib.nn.Sequential(*layers[:-1]), lib.nn.CrossEntropyLoss()
    optim = getattr(lib.optim, optimizer)(model.parameters(), lr=1e-3, **options)
    x, target = normal(lib, batch, sizes[0]), classes(lib, batch, sizes[-1])

    def call() -> None:
        optim.zero_grad()
        loss_of(model(x), target).backward()
        optim.step()

    return call


# Products and kernels alone, on arrays that are there: ours are NUMPY's.


def product(lib: Lib, rows: int, features: int, width: int) -> Call:
    """What a linear layer cannot be faster than."""
    x, w, out = normal(lib, rows, features), normal(lib, width, features), normal(lib, rows, width)
    return lambda: lib.matmul(x, w.T, out=out)


def softmax_kernel(lib: Lib, rows: int, columns: int) -> Call:
    x, out = normal(lib, rows, columns), normal(lib, rows, columns)
    return lambda: kernels.softmax(x, 1, True, out=out)


def softmax_backward_kernel(lib: Lib, rows: int, columns: int) -> Call:
    grad, y, out = (normal(lib, rows, columns) for _ in range(3))
    kernels.softmax(grad, 1, True, out=y)
    return lambda: kernels.softmax_backward(grad, y, 1, True, out=out)


def cross_entropy_kernel(lib: Lib, rows: int, columns: int) -> Call:
    x, grad, loss = normal(lib, rows, columns), normal(lib, rows, columns), np.empty((), np.float32)
    target = classes(lib, rows, columns)
    options = LossOptions("mean", -100, 0.0, 0.0, 0.0)
    return lambda: kernels.cross_entropy(
        x, target, None, options, loss=loss, lse=None, argmax=None, grad=grad, flag=None
    )


def of(program: Callable[..., Call], *shape: Any, **options: Any) -> Program:
    """A program for one shape, that is still to be told the library."""
    return lambda lib: program(lib, *shape, **options)


# --- the rivals -------------------------------------------------------------------------------------------------------


def medium(call: Call) -> Call:
    """torch's products by oneDNN instead of MKL: as exact here, and faster on processors that are not Intel's."""

    def at_medium() -> None:
        torch.set_float32_matmul_precision("medium")
        call()
        torch.set_float32_matmul_precision("highest")

    return at_medium


FUSED = SimpleNamespace(
    nn=torch.nn,
    from_numpy=torch.from_numpy,
    manual_seed=torch.manual_seed,
    optim=SimpleNamespace(
        SGD=functools.partial(torch.optim.SGD, fused=True), AdamW=functools.partial(torch.optim.AdamW, fused=True)
    ),
)
ON_TORCH = SimpleNamespace(nn=tilegrad.nn, from_numpy=torch.from_numpy)
NUMPY = SimpleNamespace(from_numpy=np.asarray, matmul=np.matmul)

RIVALS: dict[str, Callable[[Program], Call]] = {
    "torch": lambda program: program(torch),
    "torch, medium": lambda program: medium(program(torch)),
    "torch, medium, fused": lambda program: medium(program(FUSED)),  # all that its user can turn on
    "a copy": lambda program: timing.copier(),
}

# --- the cases --------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A program and what its time is held against."""

    group: str
    name: str
    program: Program
    aims: Mapping[str, float | None]  # by rival, the least ratio
    ours: Lib = tilegrad
    moved: int = 0  # bytes, where the rival is a copy
    large: bool = False  # what no instruction set may be slower at


ROWS: dict[tuple[int, int], tuple[float, float, float]] = {  # aims: log-softmax forward, backward; cross-entropy
    (2048, 32000): (5.0, 4.5, 13.0),
    (4096, 1000): (2.3, 1.25, 4.0),
    (128, 10): (3.0, 3.0, 8.0),
}
COPY_AIM = 0.85


def cases() -> Iterator[Case]:
    """In the order of the tables."""
    yield from row_cases("rows", tilegrad, "")
    for name, program, shape, aims in (
        ("linear + GELU", linear_gelu, (1024, 1024, 4096), (2.0, 1.0)),
        ("linear + GELU", linear_gelu, (128, 784, 1024), (2.0, 1.0)),
        ("linear + cross-entropy", linear_cross_entropy, (1024, 512, 32000), (2.4, 1.5)),
    ):
        name = "{}, forward + backward, {}×{} → {}".format(name, *shape)
        by_rival: dict[str, float | None] = dict(zip(("torch", "torch, medium"), aims, strict=True))
        yield Case("linear", name, of(program, *shape), by_rival, large=shape[0] >= 1024)
    for shape in ((1024, 1024, 4096), (128, 784, 1024)):
        name = "linear of bfloat16, forward + backward, {}×{} → {}".format(*shape)
        yield Case("products", name, of(linear_bfloat16, *shape), {"torch": None})
    product_of = of(product, 1024, 1024, 4096)
    yield Case("products", "product alone, 1024×1024 → 4096", product_of, dict.fromkeys(by_rival), NUMPY)
    sizes = (784, 1024, 1024, 10)
    for batch in (128, 1024):
        for optimizer, options in (("SGD", {"momentum": 0.9}), ("AdamW", {})):
            name = f"MLP {'-'.join(map(str, sizes))}, step, batch {batch}, {optimizer}"
            step = of(mlp_step, sizes, batch, optimizer, **options)
            yield Case("steps", name, step, {"torch": 2.2, "torch, medium, fused": None})
    step = of(mlp_step, (8, 8, 8, 8), 4, "SGD")
    yield Case("steps", "overhead: MLP 8-8-8-8, step, batch 4, SGD", step, {"torch": 4.0})
    # Bytes: what has to be read, and what has to be written.
    rows, columns = 2048, 32000
    size = 4 * rows * columns
    for name, kernel, moved in (
        ("log-softmax forward", softmax_kernel, 2 * size),  # x; y
        ("log-softmax backward", softmax_backward_kernel, 3 * size),  # dy, y; dx
        ("cross-entropy with gradient", cross_entropy_kernel, 2 * size),  # logits; gradient
    ):
        name = f"{name}, kernel alone, {rows}×{columns}"
        yield Case("memory", name, of(kernel, rows, columns), {"a copy": COPY_AIM}, NUMPY, moved)


def row_cases(group: str, ours: Lib, suffix: str) -> Iterator[Case]:
    for shape, aims in ROWS.items():
        for name, program, aim in zip(
            ("log-softmax forward", "log-softmax backward", "cross-entropy forward + backward"),
            (log_softmax_forward, log_softmax_backward, cross_entropy),
            aims,
            strict=True,
        ):
            full = f"{name}, {shape[0]}×{shape[1]}{suffix}"
            # On torch's tensors, outputs come from torch's allocator and calls from torch's autograd: no aim of ours.
            aims_here = {"torch": aim if ours is tilegrad else None}
            yield Case(group, full, of(program, *shape), aims_here, ours, large=shape[0] * shape[1] >= 1 << 20)


# --- measuring --------------------------------------------------------------------------------------------------------


def measured(case: Case, rounds: int) -> list[Row]:
    torch.set_num_threads(timing.cores())  # as ours; by itself it takes one for each physical core
    calls = {"ours": case.program(case.ours)} | {name: RIVALS[name](case.program) for name in case.aims}
    seconds = timing.interleaved(calls, rounds)
    scale = case.moved / (2 * timing.COPIED) if case.moved else 1.0
    rows = []
    for rival, aim in case.aims.items():
        ours, theirs = (float(np.median(seconds[name])) * 1e3 for name in ("ours", rival))
        ratio = timing.ratio(seconds[rival], seconds["ours"], scale)
        rows.append(Row(case.group, case.name, rival, ours, theirs * scale, "ms", ratio, aim))
    return rows


@contextmanager
def child(**environment: str) -> Iterator[ProcessPoolExecutor]:
    """A process that begins with these variables, and with nothing that this one has done."""
    os.environ |= environment  # from which a spawned process takes its own
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield pool
    finally:
        for name in environment:
            del os.environ[name]


def measured_by_name(name: str, rounds: int) -> list[Row]:
    return next(measured(case, rounds) for case in cases() if case.name == name)


AVX2 = ", AVX2"


def avx2_rows(only: str, rounds: int) -> Iterator[Row]:
    """Rows and linear layers on the kernels for AVX2: torch's, and both sides' products, stay as they are."""
    names = {case.name: case for case in cases() if case.group in ("rows", "linear") and only in case.name + AVX2}
    with child(TILEGRAD_ISA="avx2") as pool:
        for name, case in names.items():
            for row in pool.submit(measured_by_name, name, rounds).result():
                aim = 1.0 if case.large and row.rival == "torch" else None
                yield row._replace(group="avx2", case=name + AVX2, aim=aim)


MEMORY_SHAPE = (4096, 1024, 128256)
ALLOWED = 256 << 20


def extra_bytes(library: str) -> int:
    """What linear + cross-entropy holds at its peak beside its inputs and their gradients."""
    lib = {"tilegrad": tilegrad, "torch": torch}[library]
    linear_cross_entropy(lib, 64, 64, 256)()  # what a library keeps from its first call on
    rows, features, width = MEMORY_SHAPE
    call = linear_cross_entropy(lib, *MEMORY_SHAPE)
    return timing.peak_bytes(call) - 4 * features * (rows + width)


def memory_rows(only: str) -> Iterator[Row]:
    name = "linear + cross-entropy, peak beyond gradients, {}×{} → {}".format(*MEMORY_SHAPE)
    if only not in name:
        return
    peaks = []
    for library in ("tilegrad", "torch"):
        with child() as pool:
            peaks.append(pool.submit(extra_bytes, library).result() / (1 << 20))
    ours, naive = peaks
    for rival, theirs, aim in (("256 MiB", ALLOWED / (1 << 20), 1.0), ("torch", naive, None)):
        yield Row("memory", name, rival, ours, theirs, "MiB", timing.Ratio(*[theirs / ours] * 3), aim)


# --- the program ------------------------------------------------------------------------------------------------------

GROUPS = {
    "rows": "Rows",
    "linear": "Linear layers",
    "products": "Products of matrices",
    "steps": "Training steps",
    "memory": "Memory",
    "torch": "Rows, on torch's tensors",
    "avx2": "Kernels for AVX2",
}
PAGE = Path(__file__).parent.parent / "docs" / "cpu.md"
BEGIN, END = "<!-- python -m bench.cpu --write: begin -->", "<!-- end -->"


def rows_of(chosen: argparse.Namespace) -> Iterator[Row]:
    wanted = [*cases(), *(row_cases("torch", ON_TORCH, ", torch's tensors") if chosen.torch else ())]
    for case in wanted:
        if chosen.only in case.name:
            yield from measured(case, chosen.rounds)
    yield from avx2_rows(chosen.only, chosen.rounds)
    if chosen.memory:
        yield from memory_rows(chosen.only)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="SUBSTRING", default="", help="only cases whose names contain this")
    parser.add_argument("--rounds", type=int, default=31, help="how often each contestant is timed (31)")
    parser.add_argument("--torch", action="store_true", help="also our functions on torch's tensors")
    parser.add_argument("--memory", action="store_true", help="also the peaks of memory")
    parser.add_argument("--write", action="store_true", help=f"all of it, into {PAGE.parent.name}/{PAGE.name}")
    chosen = parser.parse_args()
    if chosen.write:
        if chosen.only:
            parser.error("--write takes all cases: the tables of the others would be lost")
        chosen.torch = chosen.memory = True

    unset = timing.fresh_process()
    about = timing.machine() | {
        "kernels for": _C.isa(),
        "threads": f"{_C.num_threads()} ours, {timing.cores()} torch's",
        "unset": ", ".join(unset) or "nothing",
        "rounds": str(chosen.rounds),
        "command": "python -m " + " ".join(["bench.cpu", *sys.argv[1:]]),
    }
    for name, value in about.items():
        print(f"{name}: {value}")
    rows = []
    others = timing.Others()
    for row in rows_of(chosen):
        rows.append(row)
        print(row, flush=True)
    about["busy with others"] = f"{others.share():.0%} of the cores' time"
    print(f"busy with others: {about['busy with others']}")
    if others.share() > others.TOLERATED:
        print("The machine was not quiet: these are not its times.")
    if chosen.write:
        machine = "; ".join(f"{name}: {value}" for name, value in about.items()) + "."
        timing.write_between(PAGE, BEGIN, END, f"{machine}\n\n{timing.markdown(rows, GROUPS)}")
    return any(row.verdict == "below" for row in rows)


if __name__ == "__main__":
    raise SystemExit(main())
