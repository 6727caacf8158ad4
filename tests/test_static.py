"""The compile gate: see bench/static.py. Triton is imported by worker processes only."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from bench import rules, static
from bench.rules import Row


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with static.workers() as pool:
        yield pool


@pytest.fixture(scope="module")
def rows(pool: ProcessPoolExecutor) -> list[Row]:
    return static.table(pool)


# --- the kernels ------------------------------------------------------------------------------------------------------


def test_no_kernel_breaks_a_rule(rows: list[Row]):
    found = [f"{' '.join(row.key)}: {complaint}" for row in rows for complaint in rules.complaints(row)]
    assert not found, "\n" + "\n".join(found)


def test_no_figure_exceeds_its_ceiling(rows: list[Row]):
    held = rules.ceilings()
    found = [f"{' '.join(row.key)}: {e}" for row in rows if row.key in held for e in rules.exceeded(row, held[row.key])]
    assert not found, "\n" + "\n".join(found)


def test_the_table_and_its_ceilings_have_the_same_rows(rows: list[Row]):
    measured, held = {row.key for row in rows}, set(rules.ceilings())
    assert not measured ^ held, "run python -m bench.static --update if this is as it should be:\n" + "\n".join(
        f"{'no ceiling' if key in measured else 'not launched'}: {' '.join(key)}" for key in sorted(measured ^ held)
    )


def test_every_kernel_and_every_row_of_the_tables_is_reached(pool: ProcessPoolExecutor):
    unreached = static.there(pool, "bench.cases", "unreached", static.CHIPS).result()
    assert not unreached, "bench/cases.py needs a case for each:\n" + "\n".join(unreached)


def test_no_offset_past_two_to_the_31_is_computed_in_32_bits(pool: ProcessPoolExecutor):
    names = static.there(pool, "bench.cases", "huge_names").result()
    futures = {name: static.there(pool, "bench.cases", "overflows", name, "sm_90") for name in names}
    found = [f"{name}: {line}" for name, future in futures.items() for line in future.result()]
    assert not found, "\n" + "\n".join(found)


def test_random_calls_compile(pool: ProcessPoolExecutor):
    futures = [static.there(pool, "bench.calls", "faults", seed, static.CHIPS[seed % 4]) for seed in range(48)]
    found = [line for future in futures for line in future.result()]
    assert not found, "\n" + "\n".join(found)


# --- the gate itself --------------------------------------------------------------------------------------------------


def planted(pool: ProcessPoolExecutor, function: str, *args: Any) -> Any:
    return static.there(pool, "planted_kernels", function, *args).result()


@pytest.mark.parametrize("chip", static.CHIPS)
def test_a_sound_kernel_has_no_complaint(pool: ProcessPoolExecutor, chip: str):
    row = planted(pool, "row", "copy_kernel", chip, 8192, 4096, 4096, 4)
    assert rules.complaints(row) == []
    assert (
        row.loads.wide == row.stores.wide == row.due_loads == 4096 * 2 // (row.warps * (64 if chip == "gfx942" else 32))
    )
    assert 0 < row.per_element < 5


@pytest.mark.parametrize("chip", static.CHIPS)
@pytest.mark.parametrize(
    ("kernel", "block", "warps", "complaint"),
    [
        ("copy_kernel", 65536, 1, "spills"),
        ("scalar_kernel", 4096, 4, "loads 0 bytes of a thread in 16-byte accesses"),
    ],
)
def test_a_planted_fault_is_found(
    pool: ProcessPoolExecutor, chip: str, kernel: str, block: int, warps: int, complaint: str
):
    row = planted(pool, "row", kernel, chip, 8192, 4096, block, warps)
    assert any(complaint in found for found in rules.complaints(row)), rules.complaints(row)


def test_a_product_without_bulk_copies_is_found(pool: ProcessPoolExecutor):
    row = planted(pool, "row", "product_kernel", "sm_90", 64, 64, 64, 4)
    assert "multiplies matrices that no bulk copy brings" in rules.complaints(row)
    (product,) = (name for name in row.tensor_ops)
    assert product == "HGMMA"
    fewer = row._replace(tensor_ops={})
    assert "multiplies matrices without HGMMA" in rules.complaints(fewer)


@pytest.mark.parametrize("chip", static.CHIPS)
def test_a_loop_counts_as_often_as_it_runs(pool: ProcessPoolExecutor, chip: str):
    short, long = (planted(pool, "row", "loop_kernel", chip, 8192, columns, 4096, 4) for columns in (65536, 655360))
    assert short.instructions == long.instructions
    assert 0 < long.per_element < short.per_element < 1.1 * long.per_element


def test_a_figure_above_its_ceiling_is_found(pool: ProcessPoolExecutor):
    row = planted(pool, "row", "copy_kernel", "sm_90", 8192, 4096, 4096, 4)
    held = rules.reached(row)
    assert rules.exceeded(row, held) == []
    assert rules.exceeded(row, held._replace(registers=held.registers + 1)) == []
    assert rules.exceeded(row, held._replace(registers=held.registers - 1)) == [
        f"registers {held.registers}, ceiling {held.registers - 1}"
    ]
    assert rules.lifted({row.key: held._replace(shared=7, registers=0)}, [row]) == {row.key: held._replace(shared=7)}


@pytest.mark.parametrize("kernel", ["narrow_offset_kernel", "flat_offset_kernel"])
def test_an_offset_of_32_bits_is_found(pool: ProcessPoolExecutor, kernel: str):
    past = planted(pool, "overflows", kernel, 1 << 22, 1024)
    assert past
    assert all("feeds" in line for line in past)
    assert planted(pool, "overflows", kernel, 1 << 20, 1024) == []


@pytest.mark.parametrize("kernel", ["copy_kernel", "loop_kernel"])
def test_an_offset_of_64_bits_is_not(pool: ProcessPoolExecutor, kernel: str):
    assert planted(pool, "overflows", kernel, 1 << 22, 4096) == []


def test_what_no_case_reaches_is_found(pool: ProcessPoolExecutor):
    unreached = static.there(pool, "bench.coverage", "unreached", {"sm_90": []}).result()
    assert "softmax_kernel" in unreached
    assert any(line.startswith("configs.SOFTMAX['sm_90']") for line in unreached)
    assert not any("['sm_80']" in line for line in unreached)


def test_a_kernel_that_does_not_compile_is_a_row_with_a_complaint(pool: ProcessPoolExecutor):
    row = planted(pool, "row", "wrong_kernel", "sm_90", 64, 64, 64, 4)
    assert row.key[:3] == ("sm_90", "wrong_kernel", "planted")
    assert any("does not compile" in found for found in rules.complaints(row))
