"""Two lookups that may be tuned, with tables of their own, and a process that has not looked anything up yet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tilegrad.kernels import tuning

H200 = "NVIDIA H200"


class Row(NamedTuple):
    block: int
    warps: int
    order: tuple[int, ...] = (1, 0)


SMALL, MEDIUM, LARGE, OTHER = Row(64, 1), Row(256, 4), Row(1024, 8), Row(64, 4)


with pytest.MonkeyPatch.context() as _aside:
    TOYS: dict[str, tuning.Tunable] = {}
    _aside.setattr(tuning, "TUNABLE", TOYS)

    @tuning.tunable(lambda chip, columns, kind: [SMALL, MEDIUM, LARGE, SMALL])
    def softmax(chip: str, columns: int, kind: str) -> Row:
        return SMALL if columns <= 64 else MEDIUM

    @tuning.tunable(lambda chip, columns: [OTHER] if columns == 1 else [SMALL, OTHER])
    def alone(chip: str, columns: int) -> Row:
        return OTHER


ask_for_name, REAL = tuning.device_name, tuning.TUNABLE


@pytest.fixture(autouse=True)
def fresh(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As a process on an H200 that has looked nothing up: the cache folder is empty, and two lookups may be tuned."""
    monkeypatch.setenv("TILEGRAD_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "_read", {})
    if "gpu" not in request.keywords:
        monkeypatch.setattr(tuning, "TUNABLE", TOYS)
        monkeypatch.setattr(tuning, "device_name", lambda: H200)
    return tmp_path


def result(row: Row = LARGE, *problem: Any, table: str = "softmax") -> tuning.Result:
    return tuning.Result((table, *(problem or (4096, "bfloat16"))), row, {"us": 1.5})


def new_process() -> None:
    tuning._read.clear()


# --- files that something is wrong with -------------------------------------------------------------------------------


def corrupt(change: Callable[[str], str]) -> str:
    """The path of a good file whose text was changed."""
    path = Path(tuning.write(H200, "sm_90", [result()]))
    path.write_text(change(path.read_text()))
    return str(path)


def edited(**changes: Any) -> Callable[[str], str]:
    """Changes in the first row."""

    def change(text: str) -> str:
        found = json.loads(text)
        found["rows"][0].update(changes)
        return json.dumps(found)

    return change


def in_header(**changes: Any) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **changes})
