"""Rows that were measured to be the faster ones on this machine: what may be tuned, how it is stored and read back.

A lookup of configs.py that is marked ``@tunable`` maps a class of problems to a row. A stored result puts another row
of the same table in its place, for that class alone; what ships nowhere cannot be stored. ``tilegrad tune`` compares,
measures and writes; a process reads once, at its first lookup, and a lookup costs one look into a dictionary.

There is one file for each model of GPU, ``tuned/<model>.json`` in ``cache_folder()``:

    {
      "format": 1,
      "device": "NVIDIA H200", "chip": "sm_90", "triton": "3.6.0", "tilegrad": "0.1.0",
      "rows": [
        {
          "lookup": "matmul_tile",
          "problem": {"multiprocessors": 132, "kind": "bulk", "m": 1024, "n": 1024, "gated": false},
          "row": {"block_m": 64, "block_n": 128, ...},
          "measured": {"op": "linear", "shape": [1024, 1024, 1024], "dtype": "bfloat16", "table_us": 9.8, "us": 9.1}
        }
      ]
    }

A file that another version of Triton or tilegrad wrote, or that is no such file, is ignored with one warning.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import triton

from . import launch

FORMAT = 1

Key = tuple[Any, ...]  # the lookup's name, then the class of problems: the lookup's arguments after the chip
Lookup = TypeVar("Lookup", bound=Callable[..., Any])

# --- what may be tuned ------------------------------------------------------------------------------------------------


class Tunable(NamedTuple):
    table: Callable[..., Any]  # (chip, *problem) → the row of the tables
    shipped: Callable[..., Iterable[Any]]  # (chip, *problem) → every row that may take its place
    classed: Callable[..., Key]  # (*problem) → the problem that stands for its class
    problem: tuple[str, ...]  # the names of its parts


TUNABLE: dict[str, Tunable] = {}  # by the lookup's name

# By chip, what replaces rows of the tables: for a while, and as it was read from the disk.
_tried: dict[str, Mapping[Key, Any]] = {}
_read: dict[str, Mapping[Key, Any] | None] = {}


def _itself(*problem: Any) -> Key:
    return problem


def tunable(shipped: Callable[..., Iterable[Any]], classed: Callable[..., Key] = _itself) -> Callable[[Lookup], Lookup]:
    """Mark a lookup ``f(chip, *problem)``, whose arguments are hashable and stand in JSON as they are.

    ``classed`` maps a problem to one that stands for its class, and for which the tables have the same row.
    """

    def marked(table: Lookup) -> Lookup:
        name = table.__name__
        TUNABLE[name] = Tunable(table, shipped, classed, tuple(inspect.signature(table).parameters)[1:])

        @functools.wraps(table)
        def lookup(chip: str, *problem: Any) -> Any:
            rows = _tried[chip] if chip in _tried else _stored(chip)
            row = None if rows is None else rows.get((name, *classed(*problem)))
            return table(chip, *problem) if row is None else row

        return lookup  # type: ignore[return-value]

    return marked


def candidates(chip: str, key: Key) -> list[Any]:
    """The row of the tables, then every other one that ships for the class; nothing if there is none."""
    name, *problem = key
    first = TUNABLE[name].table(chip, *problem)
    if first is None:
        return []
    return [first, *dict.fromkeys(row for row in TUNABLE[name].shipped(chip, *problem) if row != first)]


# --- trying out -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def using(chip: str, rows: Mapping[Key, Any]) -> Iterator[None]:
    """Inside, these rows replace those of the tables, and nothing that is stored does."""
    before = _tried.get(chip)
    _tried[chip] = rows
    try:
        yield
    finally:
        del _tried[chip]
        if before is not None:
            _tried[chip] = before


class _Asked(dict[Key, Any]):
    """Replaces no row, and keeps what was looked up."""

    def get(self, key: Key, default: Any = None) -> Any:
        self[key] = None
        return default


@contextlib.contextmanager
def asked(chip: str) -> Iterator[Iterable[Key]]:
    """What is looked up inside, each once and in order."""
    keys = _Asked()
    with using(chip, keys):
        yield keys


# --- where results are ------------------------------------------------------------------------------------------------


def cache_folder() -> str:
    """``$TILEGRAD_CACHE``, or ``tilegrad`` in ``$XDG_CACHE_HOME`` (which counts if absolute) or in ``~/.cache``."""
    own, shared = os.environ.get("TILEGRAD_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if own:
        return own
    return os.path.join(shared if os.path.isabs(shared) else os.path.expanduser("~/.cache"), "tilegrad")


def path_of(device: str) -> str:
    """The file for a model of GPU, which need not exist."""
    return os.path.join(cache_folder(), "tuned", re.sub(r"[^A-Za-z0-9.]+", "-", device) + ".json")


def device_name() -> str:
    """The model of the current GPU, as the array library at hand calls it."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    if cupy is None:
        raise RuntimeError("the model of the GPU is asked of torch or CuPy, and neither is imported")
    runtime = cupy.cuda.runtime
    return str(runtime.getDeviceProperties(runtime.getDevice())["name"].decode())


def header(device: str, chip: str) -> dict[str, Any]:
    """What has to be the same where a result is used as where it was measured."""
    package = sys.modules[__name__.partition(".")[0]]
    versions = {"triton": triton.__version__, "tilegrad": package.__version__}
    return {"format": FORMAT, "device": device, "chip": chip, **versions}


# --- reading ----------------------------------------------------------------------------------------------------------


class Unusable(ValueError):
    """A file of results that cannot be used, and why."""


class Result(NamedTuple):
    """A row that was faster than that of the tables."""

    key: Key
    row: Any
    measured: dict[str, Any]  # for people: the problem, and microseconds with the table's row and with this one


def read(device: str, chip: str) -> list[Result]:
    """What is stored for a GPU; nothing if there is no file.

    Raises:
        Unusable: the file was measured with other versions, is no such file, or holds a row that does not ship.
    """
    path = path_of(device)
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        given = {name: found.get(name) for name in header(device, chip)}
        entries = [(e["lookup"], e["problem"], e["row"], dict(e.get("measured", {}))) for e in found["rows"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unusable(f"{path} cannot be read as results of tilegrad tune ({type(error).__name__}: {error})") from None
    for name, expected in header(device, chip).items():
        if given[name] != expected:
            raise Unusable(f"{path} was measured with {name} {given[name]}, and this is {name} {expected}")
    return [_result(path, chip, *entry) for entry in entries]


def _result(path: str, chip: str, lookup: Any, problem: Any, row: Any, measured: dict[str, Any]) -> Result:
    try:
        key = (lookup, *(problem[name] for name in TUNABLE[lookup].problem))
        hash(key)
        ships = candidates(chip, key)
    except Exception:  # the tables were asked for what they never heard of
        raise Unusable(f"{path} has a row for {lookup} {problem}, which is nothing that can be tuned") from None
    for candidate in ships:
        if _plain(candidate) == row:
            return Result(key, candidate, measured)
    raise Unusable(f"{path} has the row {row} for {lookup} {problem}, which ships for no such problem")


def _plain(row: Any) -> Any:
    """A row as JSON would give it back."""
    return json.loads(json.dumps(row._asdict()))


def _stored(chip: str) -> Mapping[Key, Any] | None:
    """What is stored for the GPU of this process. Kernels that are interpreted, or compiled for a chip that is not
    there, always have the rows of the tables."""
    if launch.interpreting():
        return None
    if chip not in _read:
        _read[chip] = None  # whatever happens now, it happens once
        _read[chip] = _read_now(chip)
    return _read[chip]


def _read_now(chip: str) -> Mapping[Key, Any] | None:
    # The device is asked for its name only where it matters: most machines have never been tuned.
    if not os.path.isdir(os.path.dirname(path_of(""))):
        return None
    try:
        return {result.key: result.row for result in read(device_name(), chip)} or None
    except Unusable as error:
        remedy = "`tilegrad tune` measures anew, `tilegrad tune --clear` removes it"
        warnings.warn(f"{error}; the rows of the tables are used ({remedy})", RuntimeWarning, stacklevel=2)
        return None


# --- writing ----------------------------------------------------------------------------------------------------------


def write(device: str, chip: str, results: Iterable[Result]) -> str:
    """Store these results and no others for a GPU; the path. A reader sees the old file or the new one, whole."""
    path = path_of(device)
    found = {**header(device, chip), "rows": [_entry(result) for result in results]}
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), suffix=".part")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _read.pop(chip, None)
    return path


def _entry(result: Result) -> dict[str, Any]:
    name, *problem = result.key
    classed = dict(zip(TUNABLE[name].problem, problem, strict=True))
    return {"lookup": name, "problem": classed, "row": _plain(result.row), "measured": result.measured}


def clear(device: str) -> str | None:
    """Remove what is stored for a model of GPU: the path, or None if there was nothing."""
    path = path_of(device)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return None
    _read.clear()
    return path
