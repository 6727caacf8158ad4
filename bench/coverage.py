"""Whether the cases reach everything that ships: each kernel, and each row of each table of configs.py.

Import this in a process that Triton is to compile in.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from triton.runtime import JITFunction

from tilegrad import kernels
from tilegrad.kernels import configs

from .compiling import Case, shipped


def unreached(cases: Mapping[str, Sequence[Case]]) -> list[str]:
    """What the cases of each chip leave out. A row counts as reached on a chip if a function of tilegrad.kernels ends
    up with its like there: launchers fit rows to a problem, so that theirs need not be the table's own objects."""
    launched: set[str] = set()
    chosen: dict[str, set[str]] = {}
    for chip, of_chip in cases.items():
        with _chosen_rows() as chosen[chip]:
            launched.update(launch.kernel.__name__ for case in of_chip for run in shipped(case, chip) for launch in run)
    found = [name for name in _kernels() if name not in launched]
    for table, chip, row in _rows():
        if chip is not None and chip not in cases:
            continue
        reached = chosen[chip] if chip is not None else set().union(*chosen.values())
        if row not in reached:
            found.append(f"configs.{table}: {row}")
    return found


def _kernels() -> Iterator[str]:
    for module in pkgutil.iter_modules(kernels.__path__):
        for name, value in vars(importlib.import_module(f"{kernels.__name__}.{module.name}")).items():
            if isinstance(value, JITFunction) and name.endswith("_kernel") and value.__module__.endswith(module.name):
                yield name


def _rows() -> Iterator[tuple[str, str | None, str]]:
    """Every row: the path to it, the chip of its table, if it has one, and itself."""
    for name, value in vars(configs).items():
        if name.isupper() and not name.startswith("_"):
            yield from _rows_in(name, None, value)


def _rows_in(path: str, chip: str | None, value: Any) -> Iterator[tuple[str, str | None, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            is_chip = isinstance(key, str) and key.startswith(("sm_", "gfx"))
            yield from _rows_in(f"{path}[{key!r}]", key if is_chip else chip, inner)
    elif _is_leaf(value):
        yield path, chip, repr(value)
    elif isinstance(value, tuple | list):
        names = [f".{field}" for field in value._fields] if _is_row(value) else [f"[{i}]" for i in range(len(value))]
        for field, inner in zip(names, value, strict=True):
            yield from _rows_in(path + field, chip, inner)


def _is_row(value: Any) -> bool:
    return isinstance(value, tuple) and type(value).__module__ == configs.__name__


def _is_leaf(value: Any) -> bool:
    return _is_row(value) and not any(isinstance(field, tuple) for field in value)


@contextmanager
def _chosen_rows() -> Iterator[set[str]]:
    """The rows that functions of tilegrad.kernels return inside, or have in a variable of their own when they do. An
    argument may be a row that is only looked at: ``min(rows, key=…)``."""
    found: set[str] = set()

    def watch(frame: FrameType, event: str, value: Any) -> None:
        ours = frame.f_globals.get("__package__") in (kernels.__name__, __package__)
        if (
            event == "return" and ours and not frame.f_code.co_name.startswith("<")
        ):  # a generator looks through rows that it then passes by
            code = frame.f_code
            given = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            own = [local for name, local in frame.f_locals.items() if name not in given]
            parts = value if isinstance(value, tuple) and not _is_row(value) else (value,)
            found.update(repr(part) for part in (*parts, *own) if _is_leaf(part))

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield found
    finally:
        sys.setprofile(before)
