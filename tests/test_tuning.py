"""What was measured on a machine: when it is used, when it is not, and that a file of it is whole or not there."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from tuning_toys import (
    H200,
    LARGE,
    MEDIUM,
    OTHER,
    REAL,
    SMALL,
    Row,
    alone,
    corrupt,
    edited,
    fresh,
    in_header,
    new_process,
    result,
    softmax,
)  # fmt: skip

from tilegrad.kernels import configs, launch, tuning

__all__ = ["fresh"]  # a fixture


# --- what is stored and used ------------------------------------------------------------------------------------------


def test_a_result_changes_its_own_class_and_no_other():
    tuning.write(H200, "sm_90", [result()])
    assert softmax("sm_90", 4096, "bfloat16") == LARGE
    assert softmax("sm_90", 4096, "float32") == MEDIUM
    assert softmax("sm_90", 8192, "bfloat16") == MEDIUM
    assert softmax("sm_90", 64, "bfloat16") == SMALL
    assert alone("sm_90", 4096) == OTHER
    new_process()
    with pytest.warns(RuntimeWarning, match="measured with chip sm_90, and this is chip sm_80"):
        assert softmax("sm_80", 4096, "bfloat16") == MEDIUM


def test_the_file_reads_as_its_documentation_says(fresh: Path):
    path = tuning.write(H200, "sm_90", [result()])
    assert path == str(fresh / "tuned" / "NVIDIA-H200.json")
    assert json.loads(Path(path).read_text()) == {
        "format": 1,
        "device": H200,
        "chip": "sm_90",
        "triton": sys.modules["triton"].__version__,
        "tilegrad": sys.modules["tilegrad"].__version__,
        "rows": [
            {
                "lookup": "softmax",
                "problem": {"columns": 4096, "kind": "bfloat16"},
                "row": {"block": 1024, "warps": 8, "order": [1, 0]},
                "measured": {"us": 1.5},
            }
        ],
    }


KEYS = st.tuples(st.sampled_from([16, 64, 256, 4096]), st.sampled_from(["bfloat16", "float32"]))


@settings(max_examples=80, derandomize=True, deadline=None)
@given(st.dictionaries(KEYS, st.sampled_from([SMALL, MEDIUM, LARGE])))
def test_what_is_written_is_read(chosen: dict[tuple[int, str], Row]):
    results = [tuning.Result(("softmax", *key), row, {"us": 1.25}) for key, row in chosen.items()]
    tuning.write(H200, "sm_90", results)
    assert tuning.read(H200, "sm_90") == results
    for key in [(c, k) for c in (16, 64, 256, 4096) for k in ("bfloat16", "float32")]:
        expected = chosen.get(key, SMALL if key[0] <= 64 else MEDIUM)
        assert softmax("sm_90", *key) == expected


def test_another_model_of_gpu_has_a_file_of_its_own(monkeypatch: pytest.MonkeyPatch):
    tuning.write("NVIDIA H100 80GB HBM3", "sm_90", [result()])
    assert softmax("sm_90", 4096, "bfloat16") == MEDIUM
    tuning.write(H200, "sm_90", [result(SMALL)])
    assert softmax("sm_90", 4096, "bfloat16") == SMALL
    new_process()
    monkeypatch.setattr(tuning, "device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert softmax("sm_90", 4096, "bfloat16") == LARGE


def test_a_machine_that_was_never_tuned_is_not_asked_for_its_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning, "device_name", lambda: pytest.fail("asked"))
    assert softmax("sm_90", 4096, "bfloat16") == MEDIUM


def test_a_process_reads_once():
    path = tuning.write(H200, "sm_90", [result()])
    assert softmax("sm_90", 4096, "bfloat16") == LARGE
    os.unlink(path)
    assert softmax("sm_90", 4096, "bfloat16") == LARGE
    new_process()
    assert softmax("sm_90", 4096, "bfloat16") == MEDIUM


def test_interpreted_kernels_have_the_rows_of_the_tables(monkeypatch: pytest.MonkeyPatch):
    tuning.write(H200, "sm_90", [result()])
    with monkeypatch.context() as patch:
        patch.setattr(launch, "interpreting", lambda: True)
        assert softmax("sm_90", 4096, "bfloat16") == MEDIUM
    assert softmax("sm_90", 4096, "bfloat16") == LARGE
    monkeypatch.setattr(launch, "interpreting", lambda: True)  # now that they are read, too
    assert softmax("sm_90", 4096, "bfloat16") == MEDIUM


# --- what is stored and not used --------------------------------------------------------------------------------------


UNUSABLE = {
    "another Triton": (in_header(triton="3.5.1"), r"measured with triton 3\.5\.1, and this is triton \d"),
    "another tilegrad": (in_header(tilegrad="0.0.9"), r"measured with tilegrad 0\.0\.9, and this is tilegrad \d"),
    "another chip": (in_header(chip="sm_100"), "measured with chip sm_100, and this is chip sm_90"),
    "another device": (in_header(device="NVIDIA H20"), "measured with device NVIDIA H20, and this is device NVIDIA H"),
    "another format": (in_header(format=2), "measured with format 2, and this is format 1"),
    "no version": (lambda text: text.replace('"triton"', '"titan"'), "measured with triton None"),
    "half a file": (lambda text: text[: len(text) // 2], "cannot be read .*JSONDecodeError"),
    "an empty file": (lambda text: "", "cannot be read .*JSONDecodeError"),
    "a list": (lambda text: "[]", "cannot be read"),
    "no rows": (lambda text: text.replace('"rows"', '"lines"'), "cannot be read .*KeyError"),
    "rows that are none": (in_header(rows=[1]), "cannot be read"),
    "an unknown lookup": (edited(lookup="matmul"), "row for matmul .* nothing that can be tuned"),
    "a lookup that is none": (edited(lookup=["softmax"]), "nothing that can be tuned"),
    "an unknown class": (edited(problem={"rows": 1}), "row for softmax .*rows.* nothing that can be tuned"),
    "a class that is none": (edited(problem={"columns": 1, "kind": ["x"]}), "nothing that can be tuned"),
    "a row that does not ship": (edited(row={"block": 512, "warps": 8, "order": [1, 0]}), "ships for no such problem"),
    "a field more": (edited(row={**LARGE._asdict(), "stages": 3}), "stages.* ships for no such problem"),
    "a field less": (edited(row={"block": 1024, "warps": 8}), "ships for no such problem"),
    "a row of another class": (edited(row=OTHER._asdict()), "ships for no such problem"),
    "a row that is none": (edited(row=7), "ships for no such problem"),
}


@pytest.mark.parametrize(("change", "complaint"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_file_that_cannot_be_used_is_one_warning_and_the_tables(change: Callable[[str], str], complaint: str):
    path = corrupt(change)
    with pytest.warns(RuntimeWarning, match=complaint) as said:
        assert softmax("sm_90", 4096, "bfloat16") == MEDIUM
    assert path in str(said[0].message)
    assert "tilegrad tune" in str(said[0].message)
    assert softmax("sm_90", 64, "bfloat16") == SMALL  # without another one, which would be an error here


def test_where_warnings_are_errors_there_is_one_too():
    corrupt(lambda text: "")
    with pytest.raises(RuntimeWarning):
        softmax("sm_90", 4096, "bfloat16")
    assert softmax("sm_90", 4096, "bfloat16") == MEDIUM


def test_a_file_that_may_not_be_read(fresh: Path):
    (fresh / "tuned" / "NVIDIA-H200.json").mkdir(parents=True)  # stands in for what permissions do, root or not
    with pytest.warns(RuntimeWarning, match="cannot be read .*IsADirectoryError"):
        assert softmax("sm_90", 4096, "bfloat16") == MEDIUM


@pytest.mark.parametrize("where", ["json.dump", "os.fsync", "os.replace"])
def test_a_write_that_is_cut_off_leaves_the_old_file(fresh: Path, monkeypatch: pytest.MonkeyPatch, where: str):
    path = tuning.write(H200, "sm_90", [result()])
    module, name = where.split(".")

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[module], name, stop)
        with pytest.raises(KeyboardInterrupt):
            tuning.write(H200, "sm_90", [result(SMALL)])
    assert [entry.name for entry in (fresh / "tuned").iterdir()] == [Path(path).name]
    assert softmax("sm_90", 4096, "bfloat16") == LARGE


def test_a_reader_never_sees_half_of_a_file():
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            for row in (SMALL, LARGE):
                tuning.write(H200, "sm_90", [result(row, columns, "float32") for columns in range(50)])

    tuning.write(H200, "sm_90", [])
    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        found = [tuning.read(H200, "sm_90") for _ in range(100)]
    finally:
        stop.set()
        writer.join()
    assert {len(results) for results in found} <= {0, 50}
    assert all(len({r.row for r in results}) <= 1 for results in found)


def test_clearing():
    path = tuning.write(H200, "sm_90", [result()])
    assert softmax("sm_90", 4096, "bfloat16") == LARGE
    assert tuning.clear(H200) == path
    assert softmax("sm_90", 4096, "bfloat16") == MEDIUM
    assert tuning.clear(H200) is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TILEGRAD_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"TILEGRAD_CACHE": "", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/tilegrad"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/c"}, "/c/.cache/tilegrad"),  # which counts as unset, says XDG
        ({"HOME": "/c"}, "/c/.cache/tilegrad"),
    ],
)
def test_where_results_are(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str):
    for name in ("TILEGRAD_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tuning.cache_folder() == expected
    assert tuning.path_of("A/../B (x)") == f"{expected}/tuned/A-..-B-x-.json"  # no way out of the folder


# --- what ships -------------------------------------------------------------------------------------------------------


def test_candidates_are_the_rows_that_ship_the_tables_first():
    assert tuning.candidates("sm_90", ("softmax", 64, "float32")) == [SMALL, MEDIUM, LARGE]
    assert tuning.candidates("sm_90", ("softmax", 65, "float32")) == [MEDIUM, SMALL, LARGE]
    assert tuning.candidates("sm_90", ("alone", 1)) == [OTHER]


CHIPS = st.sampled_from(["sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942"])
POWERS = st.sampled_from([2**i for i in range(19)])
SIZES = st.one_of(st.integers(1, 300), st.integers(1, 2**20))


@settings(max_examples=200, derandomize=True, deadline=None)
@given(CHIPS, st.booleans(), st.booleans(), POWERS, st.sampled_from([2, 4, 8]))
def test_a_softmax_may_take_tiles_that_hold_its_rows(
    chip: str, backward: bool, close: bool, columns: int, itemsize: int
):
    tables = configs.SOFTMAX_BACKWARD if backward else configs.SOFTMAX
    table = configs.for_chip(tables, chip)
    shipped = table.close if close else table.apart
    found = REAL["softmax_tile"].shipped(chip, backward, close, columns, itemsize)
    holding = [row for row in shipped if row.columns >= columns]
    assert found[:1] == holding[:1]
    assert found == holding[: len(found)]
    assert configs.softmax_tile(chip, backward, close, columns, itemsize) == (found[0] if found else None)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(CHIPS, st.booleans(), st.data(), st.booleans(), POWERS)
def test_a_cross_entropy_may_take_tiles_that_hold_its_rows(
    chip: str, along: bool, data: st.DataObject, twice: bool, columns: int
):
    table = configs.for_chip(configs.CROSS_ENTROPY_ALONG if along else configs.CROSS_ENTROPY_ACROSS, chip)
    kind = data.draw(st.sampled_from(sorted(table)))
    found = REAL["cross_entropy_tile"].shipped(chip, along, kind, twice, columns)
    whole = [row for row in table[kind].whole if row.columns >= columns]
    assert found[:1] == (whole[:1] if twice or columns <= table[kind].long.columns else [])
    assert found == whole[: len(found)]
    assert configs.cross_entropy_tile(chip, along, kind, twice, columns) == (found[0] if found else None)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(CHIPS, st.data(), st.integers(1, 300), SIZES, SIZES, st.booleans())
def test_a_product_may_take_any_tile_of_its_kind(
    chip: str, data: st.DataObject, multiprocessors: int, m: int, n: int, gated: bool
):
    table = configs.for_chip(configs.MATMUL, chip)
    kind = data.draw(st.sampled_from(sorted(table)))
    problem = (multiprocessors, kind, m, n, gated)
    alike = REAL["matmul_tile"].classed(*problem)
    assert REAL["matmul_tile"].classed(*alike) == alike
    assert configs.matmul_tile(chip, *problem) == configs.matmul_tile(chip, *alike)
    for tile in table[kind]:
        tile = tile.gated if gated else tile
        assert (-(-m // tile.block_m), -(-n // tile.block_n)) == (
            -(-alike[2] // tile.block_m),
            -(-alike[3] // tile.block_n),
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "TUNABLE", REAL)
        found = tuning.candidates(chip, ("matmul_tile", *alike))
    assert found[0] == configs.matmul_tile(chip, *problem)
    assert sorted(found) == sorted({tile.gated if gated else tile for tile in table[kind]})
