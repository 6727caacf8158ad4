"""The compile gate: every kernel in every configuration that ships, compiled for every chip, without a GPU.

    python -m bench.static            print the table
    python -m bench.static --update   print it, and make its figures the ceilings of ceilings.csv
    python -m bench.static --raise    print it, and raise the ceilings that it exceeds (for a second Triton version)

Rules hold for every row and are not for update: it compiles, nothing spills, a program fits the chip, contiguous rows
move in 16-byte accesses, matrix products go to the tensor cores and are fed by bulk copies where the chip has them.
Ceilings hold what has been reached. Neither says what is fast: that is measured, on the chip.

Columns: "resident" is how many programs a multiprocessor holds at once; "instr" how many instructions the kernel has;
"/element" how many a thread executes for an element of its case, every branch taken, and loops counted as often as they
run (bench/compiling.py, `executed`); "16 B" the part of a thread's loaded and stored bytes that move in accesses of 16
bytes or more, or "bulk" where a copy engine moves them.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from . import rules
from .rules import Row

CHIPS = ("sm_80", "sm_90", "sm_100", "gfx942")

# --- the table --------------------------------------------------------------------------------------------------------


def _compile_here() -> None:
    os.environ.pop("TRITON_INTERPRET", None)


@contextmanager
def workers(count: int = 2) -> Iterator[ProcessPoolExecutor]:
    """Processes in which Triton compiles, whatever it does in this one."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_compile_here) as pool:
        yield pool


def there(pool: ProcessPoolExecutor, module: str, function: str, *args: Any) -> Future[Any]:
    """Call a function of a module that only workers may import."""
    return pool.submit(_call, module, function, args)


def _call(module: str, function: str, args: tuple[Any, ...]) -> Any:
    return getattr(importlib.import_module(module), function)(*args)


def table(pool: ProcessPoolExecutor, chips: Sequence[str] = CHIPS) -> list[Row]:
    """The rows of every case on every chip; code that several cases launch is a row of the first of them."""
    names = there(pool, "bench.cases", "names").result()
    futures = [there(pool, "bench.cuda_code", "rows", chip) for chip in chips if chip.startswith("sm_")]
    futures += [there(pool, "bench.cases", "rows", name, chip) for chip in chips for name in names]
    found: dict[str, Row] = {}
    for future in futures:
        for row in future.result():
            found.setdefault(row.code, row)
    return list(found.values())


# --- the program ------------------------------------------------------------------------------------------------------


def printed(rows: Sequence[Row]) -> str:
    """The table as aligned text."""
    header = "chip|kernel|case|regs|spills|shared|warps|resident|instr|/element|16 B load|16 B store|tensor ops|config"
    lines = [header.split("|")]
    for row in rows:
        wide = ["bulk" if t.bulk else "-" if t.share is None else f"{t.share:.0%}" for t in (row.loads, row.stores)]
        cells = [row.chip, row.kernel, row.case, row.registers, row.spilled, row.shared, row.warps, row.resident]
        cells += [row.instructions, "-" if row.per_element is None else f"{row.per_element:.2f}", *wide]
        cells += [" ".join(f"{name}×{count}" for name, count in row.tensor_ops.items()) or "-", row.config]
        lines.append([str(cell) for cell in cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = (0, 1, 2, 12, 13)
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", choices=CHIPS, action="append", help="only this chip (may be repeated)")
    parser.add_argument("--update", action="store_true", help="make the figures the ceilings")
    parser.add_argument("--raise", action="store_true", dest="lift", help="raise the ceilings that are exceeded")
    chosen = parser.parse_args()
    if chosen.update and chosen.chip:
        parser.error("--update takes all chips: the lines of the others would be lost")
    with workers() as pool:
        rows = table(pool, chosen.chip or CHIPS)
    print(printed(rows))
    wrong = [f"{' '.join(row.key)}: {complaint}" for row in rows for complaint in rules.complaints(row)]
    print(*wrong, sep="\n")
    if chosen.update:
        rules.write_ceilings({row.key: rules.reached(row) for row in rows})
    elif chosen.lift:
        rules.write_ceilings(rules.lifted(rules.ceilings(), rows))
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
