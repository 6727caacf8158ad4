"""Tile shapes and warps, a table per generation of chips; each row with its reason, or the measurement behind it.

No autotuning happens on a call: a table is looked up by the chip's name and the problem's size. A generation that a table
does not name uses that of the closest older one.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

T = TypeVar("T")


def for_chip(tables: dict[str, T], chip: str) -> T:
    """The table of a chip: its own, or that of the newest generation before it."""
    if chip in tables:
        return tables[chip]
    if not chip.startswith("sm_"):
        raise RuntimeError(f"the Triton kernels know no configuration for {chip}; they know {', '.join(tables)}")
    number = int(chip.removeprefix("sm_"))
    older = [name for name in tables if name.startswith("sm_") and int(name.removeprefix("sm_")) <= number]
    return tables[max(older, key=lambda name: int(name.removeprefix("sm_")))]


# --- softmax ----------------------------------------------------------------------------------------------------------

# --- cross-entropy ----------------------------------------------------------------------------------------------------

# --- matmul -----------------------------------------------------------------------------------------------------------

# --- linear: the pass that makes dZ -----------------------------------------------------------------------------------
