"""The matrix product in Gluon, which neither a CPU nor Triton's interpreter runs: its text on a double of Gluon, under
random schedules and with faults planted in it; and its machine code."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gluon_double
import numpy as np
import pytest
import truth
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import DTYPES, as_torch, values
from standin import driver
from standin.cupy_arrays import Cupy
from standin.process import in_its_own_process
from test_contract import Judge, worst

pytest.importorskip("triton.experimental.gluon")

from bench import static
from tilegrad.activations import ACTIVATIONS as REFERENCE
from tilegrad.kernels import configs
from tilegrad.kernels.activation import ACTIVATIONS
from tilegrad.kernels.launch import Chip, View, chip_of, view

gluon = importlib.import_module("tilegrad.kernels.matmul_gluon")
TILE = configs.GluonTile(block_m=16, block_n=16, block_k=8, stages=3, parts=2, buffers=2, group=2)

# --- on the double ----------------------------------------------------------------------------------------------------


def array(rng: np.random.Generator, rows: int, columns: int, dtype: str, turned: bool = False, pad: int = 0) -> Any:
    """(rows, columns) of a matrix whose rows, or columns, lie on 16 bytes and are that much apart."""
    shape = (columns, rows + pad) if turned else (rows, columns + pad)
    memory = np.empty(2 * shape[0] * shape[1] + 16, np.uint8)
    begin = -memory.ctypes.data % 16
    whole = memory[begin : begin + 2 * shape[0] * shape[1]].view(DTYPES[dtype]).reshape(shape)
    whole[...] = rng.standard_normal(shape)
    return (whole[:, : shape[1] - pad]).T if turned else whole[:, : shape[1] - pad]


def case(seed: int, **given: Any) -> dict[str, Any]:
    options = {
        "m": 37,
        "n": 40,
        "k": 40,
        "dtype": "bfloat16",
        "along_k": (True, True),
        "pad": 0,
        "bias": 1,
        "pre": True,
    }
    return options | {"activation": "silu", "programs": 2, "tile": TILE, "seed": seed} | given


def multiply(
    m: int, n: int, k: int, dtype: str, along_k: tuple[bool, bool], pad: int, bias: int | None, pre: bool,
    activation: str | None, programs: int, tile: Any, seed: int, text: Any = None,
) -> float:  # fmt: skip
    """Launch the product, run what is launched, and judge it: its error beside torch's."""
    rng = np.random.default_rng(seed)
    a, b = array(rng, m, k, dtype, not along_k[0], pad), array(rng, n, k, dtype, not along_k[1], pad)
    out, z = array(rng, m, n, dtype, pad=pad), array(rng, m, n, dtype, pad=pad) if pre else None
    offsets = None if bias is None else rng.standard_normal((3 * n,)).astype(DTYPES[dtype])
    if offsets is not None:
        offsets = offsets[::bias][:n] if bias else np.broadcast_to(offsets[:1], (n,))
    before = [x.copy() for x in (a, b)]
    launched: list[Any] = []
    with patch.object(gluon, "launch", lambda *args, **constants: launched.append((args, constants))):
        gluon.matmul_gluon(
            [(view(x if along else x.T), along) for x, along in zip((a, b), along_k, strict=True)], view(out),
            activation=None if activation is None else ACTIVATIONS[activation].of,
            bias=None if offsets is None else view(offsets), pre=None if z is None else view(z), tile=tile,
            chip=Chip("sm_90", programs),
        )  # fmt: skip
    (((kernel, grid, *args), constants),) = launched
    assert constants.pop("num_warps") == 4
    if activation is not None:
        constants["ACTIVATION"] = lambda x: REFERENCE[activation].of(np, x)
    arguments = [doubled(x) for x in args] + [constants.pop(name) for name in kernel.arg_names[len(args) :]]
    assert not constants
    gluon_double.run(gluon, kernel.__name__, *grid, arguments, text or TEXT, seed)

    for x, y in zip((a, b), before, strict=True):
        np.testing.assert_array_equal(x, y)
    for described in arguments[2:4]:
        assert described is None or (described.times_written == 1).all()
    judge, results = Judge(dtype), []
    for wide in (False, True):
        args = [None if x is None else as_torch(np.array(x)) for x in (a, b, offsets)]
        args = [x.double() if wide and x is not None else x for x in args]
        results.append([values(truth.linear(*args, act)) for act in (activation, None)])
    judge.add("value", values(as_torch(np.array(out))), results[0][0], results[1][0])
    if z is not None:
        judge.add("pre-activation", values(as_torch(np.array(z))), results[0][1], results[1][1])
    return worst(judge.errors)


def doubled(x: Any) -> Any:
    if isinstance(x, View):
        return gluon_double.Pointer(x)
    return gluon_double.Descriptor(x) if hasattr(x, "block_shape") else x


TEXT = gluon_double.text_of(gluon)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("stages", [2, 3, 5])
def test_every_schedule_gives_the_product(stages: int, seed: int):
    assert multiply(**case(seed, tile=TILE._replace(stages=stages))) <= 2


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 6).map(lambda n: 8 * n),
    k=st.integers(1, 6).map(lambda k: 8 * k),
    dtype=st.sampled_from(["bfloat16", "float16"]),
    along_k=st.sampled_from([(True, True), (True, False), (False, False), (False, True)]),
    pad=st.sampled_from([0, 8]),
    bias=st.sampled_from([None, 1, 3, 0, -1]),  # the stride
    pre=st.booleans(),
    activation=st.sampled_from([None, "relu", "gelu", "mish"]),
    programs=st.integers(1, 3),
    tile=st.tuples(
        *(st.sampled_from([16, 32]), st.sampled_from([16, 32]), st.sampled_from([8, 16]), st.integers(2, 4)),
        st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)]),
        st.integers(1, 3),
    ).map(lambda t: configs.GluonTile(t[0], 2 * t[1] if t[4][0] == 4 else t[1], *t[2:4], *t[4], t[5])),
    seed=st.integers(0, 2**16),
)
def test_shapes_layouts_and_options(m: int, along_k: tuple[bool, bool], **rest: Any):
    if not along_k[0]:
        m = -(-m // 8) * 8  # rows that lie on 16 bytes are asked for
    assert multiply(m=m, along_k=along_k, **rest) <= 2


STORED = "buffer.store(z.to(desc.dtype))"
FENCE = "\n    fence_async_shared()"
LOOP = "for first_k in range(0, k, DEPTH):\n            mbarrier.wait(full"
TILES = "gl.num_programs(0)):\n        tile_m, tile_n = tile_at(tile, tiles_m, tiles_n, GROUP)\n        acc"

# What goes wrong, and the text that makes it go wrong in the place of what is there.
PLANTED = {
    "a stage is filled before it is empty": ("mbarrier.wait(empty.index(stage), phase ^ 1)", "pass"),
    "the producer waits for the other parity": ("empty.index(stage), phase ^ 1", "empty.index(stage), phase"),
    "a stage is read before it is full": ("mbarrier.wait(full.index(stage), phase)", "pass"),
    "parities do not turn": ("gl.where(last, phase ^ 1, phase)", "phase"),
    "the ring does not close": ("stage == STAGES - 1", "stage == STAGES"),
    "a ring of one stage": ("gl.static_assert(STAGES > 1)", "STAGES = 1"),
    "a stage is given up under its product": ("warpgroup_mma_wait(1, deps", "warpgroup_mma_wait(2, deps"),
    "the running product's stage is given up": ("empty.index(before), pred=first_k > 0", "empty.index(stage)"),
    "the last stage of a tile is not given up": ("mbarrier.arrive(empty.index(before))", "pass"),
    "a stage is given up that was not used": (", pred=first_k > 0", ""),
    "one consumer is enough to give a stage up": ("count=CONSUMERS", "count=1"),
    "the bytes of a copy are not waited for": ("NBYTES: gl.constexpr = CONSUMERS * a", "NBYTES = a"),
    "more bytes are waited for than come": ("NBYTES: gl.constexpr = CONSUMERS", "NBYTES = 3"),
    "no fence after threads write what a copy reads": (STORED + FENCE, STORED),
    "a fence before threads write what a copy reads": (STORED + FENCE, FENCE.strip() + "\n    " + STORED),
    "no fence after barriers are made": ("fence_async_shared()  # bulk", "pass  # bulk"),
    "a buffer is written while it is read": ("bulk_store_wait(PENDING)", "pass"),
    "one copy too many is left reading": ("bulk_store_wait(PENDING)", "bulk_store_wait(PENDING + 1)"),
    "a program ends while a buffer is read": ("bulk_store_wait(0)", "pass"),
    "a result is taken while its product runs": ("warpgroup_mma_wait(0, deps", "warpgroup_mma_wait(1, deps"),
    "the consumers share a buffer": ("CONSUMER * BUFFERS + (STORES * i", "(STORES * i"),
    "the consumers share a tile of A": ("stage * CONSUMERS + CONSUMER)", "stage * CONSUMERS)"),
    "the bias is read beyond its end": (", columns < n, 0.0", ", columns < n + 8, 0.0"),
    "the bias has no stride": ("columns.to(gl.int64) * stride_b", "columns.to(gl.int64)"),
    "the end of k is left out": (LOOP, LOOP.replace("0, k,", "0, k - 1,").replace("DEPTH", "2 * DEPTH")),
    "sums go on from tile to tile": ("before = stage\n        for", "before = stage\n        acc += tile\n        for"),
    "tiles are done twice": (TILES, TILES.replace("gl.num_programs(0)", "1")),
    "halves change places": ("(0, 2, 1)).split()", "(0, 2, 1))[..., ::-1].split()"),
    "the activation comes before the bias": ("z = parts[i]", "z = ACTIVATION(parts[i])"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_fault_shows_in_every_schedule(what: str):
    text = gluon_double.text_of(gluon, *PLANTED[what])
    for seed in range(6):
        with pytest.raises(AssertionError):  # a Fault, or a wrong result
            assert multiply(**case(seed, k=72, bias=-1, text=text)) <= 2


# --- machine code -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with static.workers() as pool:
        yield pool


def there(pool: ProcessPoolExecutor, function: str, *args: Any) -> Any:
    return static.there(pool, "gluon_cases", function, *args)


def test_the_machine_code_is_what_it_is_meant_to_be(pool: ProcessPoolExecutor):
    options = [
        ("bfloat16", (True, True), "gelu", True, True),
        ("float16", (True, False), "silu", False, False),  # as dX = dZ W
        ("bfloat16", (False, False), None, False, False),  # as dW = dZᵀ X
    ]
    # Every tile with two of them.
    products = [(tile, *options[j % 3]) for i, tile in enumerate(configs.GLUON_TILES) for j in (i, i + 1)]
    for product, future in [(product, there(pool, "code", *product)) for product in products]:
        tile, _, _, _, _, pre = product
        code = future.result()
        print(*product, code, sep="\n  ")
        assert code.spilled == 0
        assert code.registers * 32 * 12 <= 65536  # eight warps multiply, one fetches, and three fill its group up
        assert 192 * 1024 + 32 * 1024 < code.shared <= 232448
        # For each of two consumers: instructions of 64 rows and a depth of 16, one begin of them, a wait in the loop
        # and one after it. Where a compiler cannot let them overlap, it waits after each.
        assert code.opcodes["HGMMA"] == 2 * (tile.block_m // 2 // 64) * (tile.block_k // 16)
        assert (code.opcodes["WARPGROUP.ARRIVE"], code.opcodes["WARPGROUP.DEPBAR.LE"]) == (2, 4)
        assert code.opcodes["UTMALDG"] >= 3
        assert code.opcodes["UTMASTG"] == 2 * tile.parts * (2 if pre else 1)
        assert code.opcodes["STSM"] > 0
        assert code.opcodes["STG"] == code.opcodes["LDL"] == code.opcodes["STL"] == 0
        assert code.disorder == []


@pytest.mark.parametrize("what", ["bar.sync", "fence.proxy.async"])
def test_threads_that_do_not_agree_are_found(pool: ProcessPoolExecutor, what: str):
    assert there(pool, "without", what).result()
    assert not there(pool, "without", "nothing of the kind").result()


# --- where it is selected ---------------------------------------------------------------------------------------------

WIN = configs.GluonWin(
    configs.GLUON_TILES[0], ("bfloat16",), (True, True), range(2048, 4097), range(8192, 8193), range(1024, 65536),
    ("gelu", None), True, "planted by a test",
)  # fmt: skip


def test_nothing_selects_it_but_a_measurement(pool: ProcessPoolExecutor):
    kernels = [there(pool, "selected", win, "sm_90", {}) for win in (None, WIN)]
    assert [kernel.result() for kernel in kernels] == ["matmul_descriptor_kernel", "matmul_gluon_kernel"]
    committed = [win for wins in configs.GLUON_WINS.values() for win in wins]
    assert all(win.tile in configs.GLUON_TILES and win.measured for win in committed)


@pytest.mark.parametrize("chip", ["sm_80", "sm_100"])
def test_no_other_chip_has_its_instructions(pool: ProcessPoolExecutor, chip: str):
    assert there(pool, "selected", WIN, chip, {}).result() != "matmul_gluon_kernel"


@pytest.mark.parametrize(
    "changed",
    [
        {"m": 2040}, {"m": 4104}, {"n": 8200}, {"k": 1016}, {"dtype": "float16"}, {"activation": "silu"},
        {"pre": False}, {"turned": True}, {"gated": True}, {"rows": 8193},
    ],
    ids=str,
)  # fmt: skip
def test_it_is_not_selected_beyond_what_was_measured_or_can_be_described(
    pool: ProcessPoolExecutor, changed: dict[str, Any]
):
    assert there(pool, "selected", WIN, "sm_90", changed).result() != "matmul_gluon_kernel"


@pytest.mark.parametrize("changed", [{"m": 2048}, {"k": 8192}, {"activation": None}], ids=str)
def test_it_is_selected_within(pool: ProcessPoolExecutor, changed: dict[str, Any]):
    assert there(pool, "selected", WIN, "sm_90", changed).result() == "matmul_gluon_kernel"


# --- the launch -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return driver.build(tmp_path_factory.mktemp("standin"))


@in_its_own_process
def test_a_launch_reaches_the_driver():
    library = Cupy()
    m, n, k, tile = 300, 520, 208, configs.GLUON_TILES[0]
    a, b = (view(library.empty(shape, "bfloat16", 1)) for shape in ((m, k), (n, k)))
    bias, out, pre = (view(library.empty(shape, "bfloat16", 1)) for shape in ((n,), (m, n), (m, n)))
    stream = driver.create_stream(1)
    for extra in ({"bias": bias, "pre": pre}, {"bias": None, "pre": None}):
        driver.calls()
        with library.streams.use(1, stream):
            gluon.matmul_gluon([(a, True), (b, True)], out, activation=None, tile=tile, chip=chip_of(out), **extra)
        record = driver.calls()
        (made,) = driver.launches(record)
        assert made.kernel == "matmul_gluon_kernel"
        assert (made.grid, made.threads, made.stream, made.device) == ((9, 1, 1), 32 * 12, stream, 1)
        encoded = [c for c in record if c["call"] == "cuTensorMapEncodeTiled"]
        operands = [(a, [64, 64]), (b, [64, 256]), (out, [64, 64]), (pre, [64, 64])]
        for found, (v, box) in zip(encoded, operands[: 3 + (extra["pre"] is not None)], strict=True):
            assert found["address"] == v.address
            assert (found["dims"], found["strides"]) == ([v.shape[1], v.shape[0]], [2 * v.shape[1]])
            assert (found["box"], found["swizzle"], found["fill"]) == (box, 3, 0)  # lines of 128 bytes; zeros beyond
