"""`tilegrad tune`: which rows may win, that the others do not, and what the command says."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("triton")

from tuning_toys import (
    H200,
    LARGE,
    MEDIUM,
    REAL,
    SMALL,
    Row,
    alone,
    corrupt,
    fresh,
    in_header,
    result,
    softmax,
)  # fmt: skip

import tilegrad
from tilegrad.cli import gpu as gpus
from tilegrad.cli import main
from tilegrad.kernels import launch, tuning

__all__ = ["fresh"]  # a fixture

tuner = importlib.import_module("tilegrad.cli.tune")  # the package gives the name to the command inside


# --- what may win -----------------------------------------------------------------------------------------------------


class Toy:
    """A GPU whose clock knows what each row takes, and an operation that makes one or two lookups."""

    name = H200

    def __init__(self, costs: dict[Row, float], noise: float = 0.0, seed: int = 0):
        self.costs, self.noise, self._draw = costs, noise, np.random.default_rng(seed)
        self.output: Callable[[Row], np.ndarray] = lambda row: np.ones(3, np.float32)
        self.ran: list[Row] = []
        self.timed: list[Row] = []

    def normal(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.zeros(shape, np.float32)

    def below(self, count: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, np.int64)

    def time(self, call: Callable[[], Any]) -> float:
        call()
        self.timed.append(self.ran[-1])
        return self.costs[self.ran[-1]] * (1 + self.noise * self._draw.standard_exponential())

    difference = staticmethod(lambda x, y: gpus._relative(float(abs(x - y).max()), float(abs(y).max())))

    def operation(self, gpu: Any, dtype: str, rows: int, columns: int) -> Callable[[], tuple[np.ndarray, ...]]:
        gpu.normal((rows, columns), dtype)

        def call() -> tuple[np.ndarray, ...]:
            alone("sm_90", 1)
            self.ran.append(softmax("sm_90", columns, dtype))
            return self.output(self.ran[-1]), None  # type: ignore[return-value]

        return call


EQUAL = {SMALL: 10.0, MEDIUM: 10.0, LARGE: 10.0}
PROBLEM = tuner.Problem("log_softmax", (8, 4096), "float32")
KEY = ("softmax", 4096, "float32")


def judged(toy: Toy) -> tuner.Verdict:
    return tuner.judge(toy, PROBLEM, toy.operation(toy, "float32", 8, 4096), "sm_90", KEY)


def test_the_faster_row_wins():
    toy = Toy(EQUAL | {LARGE: 8.0}, noise=0.02)
    verdict = judged(toy)
    assert verdict.row == LARGE
    assert verdict.rows == 3
    assert verdict.best.median / verdict.table.median == pytest.approx(0.8, rel=0.05)
    assert set(toy.timed[:9]) == {SMALL, MEDIUM, LARGE}  # in turns, not one after the other
    assert len({tuple(toy.timed[i : i + 3]) for i in range(0, 90, 3)}) > 1
    assert softmax("sm_90", 4096, "float32") == MEDIUM  # nothing is left behind


@pytest.mark.parametrize("gain", [0.0, 0.01])
def test_less_than_two_percent_is_no_win(gain: float):
    assert judged(Toy(EQUAL | {LARGE: 10 * (1 - gain)})).row is None


def test_noise_is_no_win():
    """The same row three times, under a clock that is 20% off: the winner of a race among them would be luck."""
    assert [seed for seed in range(60) if judged(Toy(EQUAL, noise=0.2, seed=seed)).row is not None] == []


def test_a_gain_within_the_noise_is_no_win():
    assert judged(Toy(EQUAL | {LARGE: 9.5}, noise=0.5)).row is None


def test_luck_in_the_field_does_not_outlast_the_second_race():
    toy = Toy(EQUAL)
    field = 3 * (tuner.WARM + tuner.COUNTED)
    honest = toy.time

    def time(call: Callable[[], Any]) -> float:
        taken = honest(call)
        return taken / 2 if toy.timed[-1] == LARGE and len(toy.timed) <= field else taken

    toy.time = time  # type: ignore[method-assign]
    assert judged(toy).row is None


@pytest.mark.parametrize("wrong", [0.9, np.nan, np.inf])
def test_a_row_with_another_output_does_not_win(wrong: float):
    toy = Toy(EQUAL | {LARGE: 1.0, SMALL: 5.0})
    toy.output = lambda row: np.array([1, 1, wrong if row == LARGE else 1], np.float32)
    with np.errstate(invalid="ignore"):
        verdict = judged(toy)
    assert verdict.row == SMALL
    assert LARGE not in toy.timed
    assert [line.split(")")[0] for line in verdict.refused] == ["(block=1024 warps=8 order=(1, 0"]
    assert "another output" in verdict.refused[0]


def test_a_row_that_does_not_run_does_not_win():
    def output(row: Row) -> np.ndarray:
        if row == LARGE:
            raise RuntimeError("out of resource:\nshared memory")
        return np.ones(3, np.float32)

    toy = Toy(EQUAL | {LARGE: 1.0})
    toy.output = output
    verdict = judged(toy)
    assert verdict.row is None
    assert "does not run (RuntimeError: out of resource: shared memory)" in verdict.refused[0]


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lookups of configs.py in place of the toys."""
    monkeypatch.setattr(tuning, "TUNABLE", REAL)


class OfNumpy(Toy):
    """The CPU, where kernels are interpreted; its clock says the last row is the fastest of all that were tried."""

    def __init__(self) -> None:
        super().__init__({})
        self.made: list[np.ndarray] = []
        self.calls: list[Any] = []

    def normal(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        self.made.append(self._draw.standard_normal(shape).astype(dtype))
        return self.made[-1]

    def below(self, count: int, shape: tuple[int, ...]) -> np.ndarray:
        self.made.append(self._draw.integers(0, count, shape))
        return self.made[-1]

    def time(self, call: Callable[[], Any]) -> float:
        if call not in self.calls:
            call()
            self.calls.append(call)
        return 10.0 - self.calls.index(call)


LOOKUPS = {
    "log_softmax": ("softmax_tile", (5, 100)),
    "log_softmax_backward": ("softmax_tile", (5, 100)),
    "cross_entropy": ("cross_entropy_tile", (5, 100)),
    "cross_entropy_backward": ("cross_entropy_tile", (5, 100)),
    "linear": ("matmul_tile", (40, 50, 70)),
    "linear_backward": ("matmul_tile", (40, 50, 70)),
    "linear_cross_entropy": ("matmul_tile", (40, 50, 70)),
}


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("op", tuner.OPERATIONS)
def test_every_row_that_ships_gives_the_same_output(
    op: str, sanitized: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    """The operations as they ship, interpreted: what they touch beside arrays that the tuner made is a fault."""
    monkeypatch.setattr(tuner, "WARM", 0)
    monkeypatch.setattr(tuner, "COUNTED", 2)
    lookup, shape = LOOKUPS[op]
    gpu = OfNumpy()
    problem = tuner.Problem(op, shape, "float32")
    with sanitized(), tilegrad.backend("triton"):
        ((_, call, keys),) = tuner._lookups(gpu, [problem], "sm_90")
        inputs = [x.copy() for x in gpu.made]
        assert {key[0] for key in keys} == {lookup}
        for key in keys:
            gpu.calls.clear()
            verdict = tuner.judge(gpu, problem, call, "sm_90", key)
            assert verdict.refused == []
            assert verdict.rows == len(tuning.candidates("sm_90", key)) > 1
    assert all(np.array_equal(x, y) for x, y in zip(gpu.made, inputs, strict=True))


# --- the command ------------------------------------------------------------------------------------------------------


def run(*args: Any, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["tune", *map(str, args)])
    assert done.exit_code == code, (done.output, done.exception)
    if code:
        assert done.stderr.count("\n") == 1
        return done.stderr.removeprefix("tilegrad: ").rstrip()
    return done.output


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Toy], Toy]:
    """Makes a toy the machine's GPU, and log_softmax its operation."""

    def install(toy: Toy) -> Toy:
        monkeypatch.setattr(tuner, "find_gpu", lambda: toy)
        monkeypatch.setattr(tuner, "_check_triton", lambda: None)
        monkeypatch.setattr(tuner, "backend", contextlib.nullcontext)
        monkeypatch.setattr(launch, "chip_of", lambda view: launch.Chip("sm_90", 132))
        made = tuner.Operation(toy.operation, ("rows", "columns"), ((8, 64), (8, 4096), (16, 4096)))
        monkeypatch.setitem(tuner.OPERATIONS, "log_softmax", made)
        return toy

    return install


def test_what_is_found_is_stored_and_used(on: Callable[[Toy], Toy]):
    toy = on(Toy(EQUAL | {LARGE: 8.0, SMALL: 7.0}))
    said = run("--op", "log_softmax", "--dtype", "float32")
    assert "NVIDIA H200, sm_90: 0 stored" in said
    assert "softmax columns=64 kind=float32: best of 3, 7.0 → 7.0 µs: the table's row stays" in said
    assert "softmax columns=4096 kind=float32: best of 3, 10.0 → 7.0 µs: 1.429×, (block=64 warps=1" in said
    assert "alone columns=1: 1 to choose from" in said
    assert said.count("columns=4096") == 1  # two shapes of one class
    (stored,) = tuning.read(H200, "sm_90")
    assert stored.key == KEY
    expected = {"op": "log_softmax", "shape": [8, 4096], "dtype": "float32", "table_us": 10.0, "us": 7.0}
    assert stored.measured == expected
    assert softmax("sm_90", 4096, "float32") == SMALL

    toy.costs[SMALL] = 20.0  # as if after a new driver
    tuning.write(H200, "sm_90", [stored, result(SMALL, 4096, "bfloat16")])
    run("--op", "log_softmax", "--dtype", "float32", "--shape", "8x4096")
    assert [(r.key, r.row) for r in tuning.read(H200, "sm_90")] == [
        (("softmax", 4096, "bfloat16"), SMALL),  # not measured this time: kept
        (KEY, LARGE),
    ]
    toy.costs[LARGE] = 20.0
    run("--op", "log_softmax", "--dtype", "float32", "--shape", "8x4096")
    assert [r.key for r in tuning.read(H200, "sm_90")] == [("softmax", 4096, "bfloat16")]


def test_the_table_is_what_is_compared_with_whatever_is_stored(on: Callable[[Toy], Toy]):
    on(Toy(EQUAL | {LARGE: 8.0}))
    tuning.write(H200, "sm_90", [tuning.Result(KEY, LARGE, {})])
    assert softmax("sm_90", 4096, "float32") == LARGE
    assert "10.0 → 8.0 µs: 1.250×" in run("--op", "log_softmax", "--dtype", "float32")


def test_a_dry_run_stores_nothing(on: Callable[[Toy], Toy], fresh: Path):
    toy = on(Toy(EQUAL | {LARGE: 8.0}))
    said = run("--op", "log_softmax", "--dry-run")
    assert "softmax columns=4096 kind=bfloat16: 3 to choose from, table: (block=256 warps=4 order=(1, 0))\n" in said
    assert toy.timed == []
    assert list(fresh.iterdir()) == []
    tuning.write(H200, "sm_90", [result()])
    assert "table: (block=256 warps=4 order=(1, 0)); stored: (block=1024" in run("--op", "log_softmax", "--dry-run")


def test_what_was_done_before_an_interruption_is_kept(on: Callable[[Toy], Toy]):
    toy = on(Toy(EQUAL | {LARGE: 8.0}))
    honest = toy.time

    def time(call: Callable[[], Any]) -> float:
        if len(toy.timed) > 400:
            raise KeyboardInterrupt
        return honest(call)

    toy.time = time  # type: ignore[method-assign]
    assert run("--op", "log_softmax", code=130) == "interrupted; what was found until then is stored"
    assert [r.key for r in tuning.read(H200, "sm_90")] == [("softmax", 64, "bfloat16")]


def test_a_file_of_another_version_is_replaced(on: Callable[[Toy], Toy]):
    on(Toy(EQUAL))
    corrupt(in_header(triton="3.5.1"))
    said = run("--op", "log_softmax")
    assert "measured with triton 3.5.1" in said
    assert tuning.read(H200, "sm_90") == []


def test_clear(on: Callable[[Toy], Toy]):
    on(Toy(EQUAL))
    assert run("--clear") == "nothing was stored for NVIDIA H200\n"
    path = corrupt(lambda text: text[:50])
    assert run("--clear") == f"removed {path}\n"
    assert not os.path.exists(path)


def test_errors_are_one_line(on: Callable[[Toy], Toy], monkeypatch: pytest.MonkeyPatch):
    assert "neither CuPy nor torch finds one" in run(code=2)
    assert "'softplus'" in run("--op", "softplus", code=2)
    assert "'8x-1', expected whole numbers above 0" in run("--shape", "8x-1", code=2)
    assert "'8xx1'" in run("--shape", "8xx1", code=2)
    said = run("--op", "linear", "--shape", "8x8", code=2)
    assert said == "--shape 8x8: expected the sizes of an operation (linear: ROWSxINPUTSxOUTPUTS)"
    assert "--shape 8: expected" in run("--shape", "8", code=2)
    with monkeypatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        assert "TRITON_INTERPRET" in run(code=2)
    with monkeypatch.context() as patch:
        patch.setattr(tuner, "find_gpu", lambda: Toy(EQUAL))
        assert run(code=2).startswith("backend 'triton' cannot run: neither CuPy nor torch finds a GPU")
    toy = on(Toy(EQUAL))
    toy.normal = lambda shape, dtype: np.zeros(1 if shape == (1,) else 1 << 55)  # type: ignore[method-assign]
    assert "allocate" in run("--op", "log_softmax", code=2)


def test_shapes_go_to_the_operations_that_take_them():
    found = tuner.problems(["log_softmax", "linear"], [(8, 4), (8, 4, 2)], ["float16", "float32"])
    assert [str(p) for p in found] == [
        "log_softmax 8x4 float16",
        "log_softmax 8x4 float32",
        "linear 8x4x2 float16",
        "linear 8x4x2 float32",
    ]


@pytest.mark.gpu
def test_on_a_gpu():
    said = run("--op", "log_softmax", "--shape", "16384x4096")
    least = 16384 * 4096 * 4 / 10e12 * 1e6  # µs for reading and writing, at more than any GPU reaches
    assert all(float(time) > least for time in re.findall(r"([0-9.]+) → ", said))


def test_the_command_line_imports_nothing_heavy():
    code = "import sys, tilegrad.cli\nprint(sorted({'torch', 'triton', 'cupy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
