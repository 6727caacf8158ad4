"""What is asked of the figures of compiled kernels: rules for all of them, and a ceiling for each."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from .machine_code import Traffic

CEILINGS = Path(__file__).with_name("ceilings.csv")


class Row(NamedTuple):
    """The figures of one kernel in one configuration on one chip, as one case launches it."""

    chip: str
    kernel: str
    case: str
    config: str
    code: str  # the same for rows of the same code
    failure: str = ""  # why there is no code; the figures then are those below
    alternative: bool = False  # not what the tables choose, but what tuning may put in its place
    contiguous: bool = False  # the case's arrays lie so that every access can be of 16 bytes
    warps: int = 0
    registers: int = 0
    spilled: int = 0  # bytes; AMD: and registers
    shared: int = 0  # bytes
    resident: int = 0  # programs at once on a multiprocessor
    instructions: int = 0
    per_element: float | None = None  # instructions that a thread spends on an element of the case; None: not known
    loads: Traffic = Traffic(0, 0, 0)
    stores: Traffic = Traffic(0, 0, 0)
    due_loads: int = 0  # bytes of a thread that should be wide, in tensors that have 16 for every thread
    due_stores: int = 0
    products: int = 0  # of matrices that are made for tensor cores, in the IR
    tensor_ops: dict[str, int] = {}  # noqa: RUF012

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.chip, self.kernel, self.case, self.config


# --- the rules --------------------------------------------------------------------------------------------------------

MATRIX_UNIT = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}
BULK_COPIES = ("sm_90", "sm_100")  # the chips whose matrix products are fed by them

# Instructions per element, by chip and case. An H200 executes about 28 while its memory brings a bfloat16 and takes one
# away (132 multiprocessors × 4 × 32 lanes at 1.75 GHz, 4.3 TB/s); a third is left for what stands between two loads.
BUDGET = {("sm_90", "log_softmax 4096"): 20, ("sm_90", "cross_entropy 4096"): 20}
# A float32 has twice the bytes, and so twice the time.
_ROW_KERNELS = ("log_softmax", "softmax", "log_softmax_backward", "softmax_backward")
_ROW_KERNELS += ("cross_entropy", "cross_entropy loss", "cross_entropy_backward")
BUDGET |= {("sm_90", f"CUDA {kernel} 4096"): 20 for kernel in _ROW_KERNELS}
BUDGET |= {("sm_90", f"CUDA {kernel} 4096 fp32"): 40 for kernel in _ROW_KERNELS}
# One program on a multiprocessor cannot overlap loads with arithmetic. Rows up to here have two, in CUDA C++, where
# clusters share what is longer; without them a row is rather read once.
PAIRED = re.compile(r"CUDA (?!linear).* (1000|4096|32768)( fp32)?")


def complaints(row: Row) -> list[str]:
    """What is wrong with a row, whatever its ceilings are."""
    if row.failure:
        return [f"does not compile: {row.failure}"]
    found = []
    if row.spilled:
        found.append(f"spills {row.spilled} bytes")
    if row.resident == 0:
        found.append(f"does not fit: {row.registers} registers, {row.warps} warps, {row.shared} bytes of shared memory")
    if row.products and MATRIX_UNIT[row.chip] not in row.tensor_ops:
        found.append(f"multiplies matrices without {MATRIX_UNIT[row.chip]}")
    if row.resident < 2 and row.chip != "sm_80" and PAIRED.fullmatch(row.case):
        found.append(f"only {row.resident} program at once on a multiprocessor")
    budget = BUDGET.get((row.chip, row.case))
    counted = row.kernel != "count_targets"  # a launch beside a loss's own
    if budget is not None and counted and not row.alternative and (row.per_element is None or row.per_element > budget):
        found.append(f"executes {row.per_element} instructions an element, with a budget of {budget}")
    if row.contiguous:
        if row.loads.wide < row.due_loads:
            found.append(_narrow("loads", row.loads, row.due_loads))
        # AMD's matrix units leave four elements of a column with a thread, and its compiler stores them as they lie.
        if row.stores.wide < row.due_stores and "v_mfma" not in row.tensor_ops:
            found.append(_narrow("stores", row.stores, row.due_stores))
        if row.products and row.chip in BULK_COPIES and not row.loads.bulk:
            found.append("multiplies matrices that no bulk copy brings")
    return found


def _narrow(what: str, traffic: Traffic, due: int) -> str:
    return f"{what} {traffic.wide} bytes of a thread in 16-byte accesses, where {due} could be"


# --- the ceilings -----------------------------------------------------------------------------------------------------

KEY = ("chip", "kernel", "case", "config")
HELD = ("registers", "shared", "instructions", "per_element")


class Ceiling(NamedTuple):
    registers: int
    shared: int
    instructions: int
    per_element: float | None


def ceilings() -> dict[tuple[str, ...], Ceiling]:
    with CEILINGS.open(newline="") as file:
        return {
            tuple(line[name] for name in KEY): Ceiling(
                int(line["registers"]),
                int(line["shared"]),
                int(line["instructions"]),
                float(line["per_element"]) if line["per_element"] else None,
            )
            for line in csv.DictReader(file)
        }


def reached(row: Row) -> Ceiling:
    return Ceiling(row.registers, row.shared, row.instructions, row.per_element)


def exceeded(row: Row, held: Ceiling) -> list[str]:
    """Which figures of a row are above their ceilings."""
    found = []
    for name, figure, ceiling in zip(HELD, reached(row), held, strict=True):
        if ceiling is not None and (figure is None or figure > ceiling):
            found.append(f"{name} {figure}, ceiling {ceiling}")
    return found


def lifted(held: Mapping[tuple[str, ...], Ceiling], rows: Iterable[Row]) -> dict[tuple[str, ...], Ceiling]:
    """The ceilings, raised to the figures of these rows where they are above."""
    new = dict(held)
    for row in rows:
        pairs = zip(held.get(row.key, reached(row)), reached(row), strict=True)
        new[row.key] = Ceiling(*(None if a is None or b is None else max(a, b) for a, b in pairs))
    return new


def write_ceilings(held: dict[tuple[str, ...], Ceiling]) -> None:
    with CEILINGS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*KEY, *HELD))
        writer.writerows((*key, *figures) for key, figures in sorted(held.items()))
