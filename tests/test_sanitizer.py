"""The sanitizer itself: bugs planted, each beside a twin that has none; what it counts; what it leaves behind.

Races and barriers are in test_kernel_order.py, arithmetic in test_kernel_arithmetic.py.
"""

from __future__ import annotations

import math
import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import triton
import triton.language as tl
from sanitizer import ORDERS, OutOfBounds, Sanitizer
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

Sanitized = Callable[..., Sanitizer]
BFLOAT16 = ml_dtypes.bfloat16
RNG = np.random.default_rng(0)


def aligned(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """Zeros that begin on 64 bytes, as a GPU's allocators have it at the least."""
    room = np.zeros(math.prod(shape) * np.dtype(dtype).itemsize + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + room.size - 64].view(dtype).reshape(shape)


def randn(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    made = aligned(shape, dtype)
    made[...] = RNG.standard_normal(shape)
    return made


class Described:
    """A NumPy array as a TensorDescriptor takes it."""

    def __init__(self, x: np.ndarray) -> None:
        self.__array_interface__, self.dtype, self.itemsize = x.__array_interface__, x.dtype, x.itemsize
        self.shape, self.strides = x.shape, x.strides

    def data_ptr(self) -> int:
        return self.__array_interface__["data"][0]


def kinds(san: Sanitizer) -> list[str]:
    """The kinds of the faults, each once."""
    return list(dict.fromkeys(fault.kind for fault in san.faults))


# --- arrays -----------------------------------------------------------------------------------------------------------


@triton.jit
def copy_row(x_ptr, y_ptr, columns, stride_x, stride_y, read, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride_x + offsets, mask=offsets < read, other=0.0)
    tl.store(y_ptr + row * stride_y + offsets, x, mask=offsets < columns)


def copied(san: Sanitizer, x: np.ndarray, y: np.ndarray, read: int, columns: int, block: int) -> None:
    with san:
        san.own(x, "input")
        san.own(y, "output")
        strides = [a.strides[0] // a.itemsize for a in (x, y)]
        copy_row[(len(x),)](x, y, columns, *strides, read, BLOCK=block)


def test_a_kernel_without_faults(sanitized: Sanitized) -> None:
    x, y = randn(6, 100), aligned((6, 100))
    copied(san := sanitized(), x, y, read=100, columns=100, block=128)
    np.testing.assert_array_equal(x, y)
    assert san.faults == []


def test_out_of_bounds_load(sanitized: Sanitized) -> None:
    x, y = randn(6, 100), aligned((6, 100))
    with pytest.raises(OutOfBounds, match=r"out-of-bounds in copy_row, program 5: .*load by 28 lanes, .* byte 2400"):
        copied(sanitized(), x, y, read=128, columns=100, block=128)


def test_out_of_bounds_store(sanitized: Sanitized) -> None:
    x, room = randn(6, 100), np.full((7, 100), 7.0, np.float32)
    with pytest.raises(OutOfBounds, match="store by 28 lanes"):
        copied(sanitized(), x, room[:6], read=100, columns=128, block=128)
    assert (room[6] == 7).all()  # it did not happen


def test_out_of_bounds_before_the_first(sanitized: Sanitized) -> None:
    x, y = randn(6, 128), aligned((6, 128))
    with pytest.raises(OutOfBounds, match=r"byte -\d+ of"), sanitized():
        copy_row[(6,)](x, y, 128, -128, 128, 128, BLOCK=128)


def test_out_of_bounds_where_another_array_lies(sanitized: Sanitized) -> None:
    both = randn(12, 100)
    with pytest.raises(OutOfBounds):
        copied(sanitized(), both[:6], both[6:], read=128, columns=100, block=128)


@pytest.mark.parametrize(
    ("read", "written", "found"), [(100, 100, []), (101, 100, ["padding"]), (100, 101, ["padding"])]
)
def test_padding(sanitized: Sanitized, read: int, written: int, found: list[str]) -> None:
    x, y = randn(6, 128)[:, :100], aligned((6, 128))[:, :100]
    with sanitized(check=False) as san:
        copy_row[(5,)](san.own(x, "input"), san.own(y, "inout"), written, 128, 128, read, BLOCK=128)
    assert kinds(san) == found
    with pytest.raises(OutOfBounds):  # behind the last row there is none
        copied(sanitized(), x, y, read=101, columns=100, block=128)


def test_layouts(sanitized: Sanitized) -> None:
    """Negative and zero strides, and elements that are not side by side."""
    backwards, expanded, sliced = randn(6, 128)[::-1], np.broadcast_to(randn(1, 128), (6, 128)), randn(12, 128)[::2]
    for x in (backwards, expanded, sliced):
        y = aligned((6, 128))
        copied(sanitized(), x, y, read=128, columns=128, block=128)
        np.testing.assert_array_equal(x, y)


def test_unwritten_output(sanitized: Sanitized) -> None:
    x, y = randn(6, 100), aligned((6, 100))
    copied(san := sanitized(check=False), x, y, read=100, columns=99, block=128)
    assert kinds(san) == ["unwritten-output"]
    assert "24 of 2400 bytes" in san.faults[0].detail


def test_write_to_input(sanitized: Sanitized) -> None:
    x = randn(6, 100)
    with sanitized(check=False) as san:
        copy_row[(6,)](san.own(x, "input"), x, 100, 100, 100, 100, BLOCK=128)
    assert kinds(san) == ["write-to-input"]
    with sanitized() as san:
        copy_row[(6,)](san.own(x, "inout"), x, 100, 100, 100, 100, BLOCK=128)


@pytest.mark.parametrize("role", ["output", "workspace"])
def test_uninitialised_read(sanitized: Sanitized, role: str) -> None:
    x, y = randn(6, 100), randn(6, 100)
    with sanitized(check=False) as san:
        copy_row[(6,)](san.own(x, role), san.own(y, "output"), 100, 100, 100, 100, BLOCK=128)
    assert kinds(san)[0] == "uninitialised-read"
    assert np.isnan(y).all()  # what is read there does not look like a number
    with sanitized() as san:
        copy_row[(6,)](san.own(y, "inout"), san.own(x, role), 100, 100, 100, 100, BLOCK=128)
        copy_row[(6,)](x, y, 100, 100, 100, 100, BLOCK=128)


def test_the_host_may_initialise(sanitized: Sanitized) -> None:
    x, y = randn(6, 100), randn(6, 100)
    with sanitized() as san:
        san.own(x, "workspace")[...] = 0
        copy_row[(6,)](x, san.own(y, "output"), 100, 100, 100, 100, BLOCK=128)
    assert (y == 0).all()


@triton.jit
def sum_rows(x_ptr, y_ptr, columns, masked: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    if masked:
        x = tl.load(x_ptr + tl.program_id(0) * columns + offsets, mask=offsets < columns, other=0.0)
    else:
        x = tl.load(x_ptr + tl.program_id(0) * columns + offsets, mask=offsets < columns)
    tl.store(y_ptr + tl.program_id(0), tl.sum(x, 0))


def test_lanes_without_other_are_undefined(sanitized: Sanitized) -> None:
    x, y = np.ones((2, 100), np.float32), np.zeros(2, np.float32)
    with sanitized():
        sum_rows[(2,)](x, y, 100, False, BLOCK=128)
        assert np.isnan(y).all()
        sum_rows[(2,)](x, y, 100, True, BLOCK=128)
        assert (y == 100).all()


@triton.jit
def offset_in_32_bits(y_ptr, stride, wide: tl.constexpr):
    row = tl.program_id(0)
    if wide:
        row = row.to(tl.int64)
    tl.store(y_ptr + row * stride, 1.0, mask=row == 0)


def test_overflow(sanitized: Sanitized) -> None:
    y = np.zeros(1, np.float32)
    with sanitized(check=False) as san:
        offset_in_32_bits[(3,)](y, 2**30, False)
    assert kinds(san) == ["overflow"]
    with sanitized() as san:
        offset_in_32_bits[(3,)](y, 2**30, True)


@triton.jit
def from_either(x_ptr, y_ptr, z_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(z_ptr + offsets, tl.load(tl.where(offsets < n, x_ptr + offsets, y_ptr + offsets)))


def test_one_instruction_on_two_arrays(sanitized: Sanitized) -> None:
    x, y, z = randn(40), randn(64), aligned((64,))
    with sanitized() as san:
        from_either[(1,)](san.own(x, "input"), san.own(y, "input"), san.own(z, "output"), 40, BLOCK=64)
    np.testing.assert_array_equal(z, np.concatenate([x, y[40:]]))
    assert san.issued_by(x) == (160, 0)
    assert san.issued_by(y) == (96, 0)


@triton.jit
def as_bytes(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(y_ptr.to(tl.pointer_type(tl.uint8)) + offsets, tl.load(x_ptr.to(tl.pointer_type(tl.uint8)) + offsets))


def test_smaller_elements_than_the_array_has(sanitized: Sanitized) -> None:
    x, y = randn(32), aligned((32,))
    with sanitized() as san:
        as_bytes[(1,)](san.own(x, "input"), san.own(y, "output"), BLOCK=128)
    np.testing.assert_array_equal(x, y)
    with sanitized(check=False) as san:
        as_bytes[(1,)](san.own(x, "input"), san.own(y, "output"), BLOCK=64)
    assert "64 of 128 bytes" in san.faults[0].detail
    with sanitized(check=False) as san:
        san.own(y, "workspace")
        san.own(y.view(np.uint8)[:3], "output")
    assert "3 of 3 bytes" in san.faults[0].detail


def test_arrays_that_share_memory(sanitized: Sanitized) -> None:
    """Columns of one matrix, interleaved: an input, and an output."""
    both = randn(6, 200)
    x, y = both[:, :100], both[:, 100:]
    copied(sanitized(), x, y, read=100, columns=100, block=128)
    np.testing.assert_array_equal(x, y)
    copied(san := sanitized(check=False), y, x, read=100, columns=101, block=128)
    assert kinds(san) == ["write-to-input"]


def test_arrays_that_come_to_overlap(sanitized: Sanitized) -> None:
    """A part keeps what it is when the whole is launched with."""
    x = randn(6, 128)
    with sanitized(check=False) as san:
        copy_row[(1,)](san.own(x[:3], "input"), san.own(x[4:], "output"), 128, 128, 128, 128, BLOCK=128)
        assert san.issued_by(x) == (512, 512)
        copy_row[(2,)](x, x, 128, 5 * 128, 128, 128, BLOCK=128)  # rows 0 and 5 to 0 and 1
        assert san.issued_by(x) == (1536, 1536)
    assert sorted(kinds(san)) == ["uninitialised-read", "unwritten-output", "write-to-input"]


# --- counts -----------------------------------------------------------------------------------------------------------


@triton.jit
def log_softmax(x_ptr, y_ptr, columns, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * columns + tl.arange(0, BLOCK)
    mask = tl.arange(0, BLOCK) < columns
    x = tl.load(x_ptr + offsets, mask=mask, other=-float("inf")).to(tl.float32)
    x -= tl.max(x, 0)
    tl.store(y_ptr + offsets, x - tl.log(tl.sum(tl.exp(x), 0)), mask=mask)


@triton.jit
def log_softmax_twice_read(x_ptr, y_ptr, columns, BLOCK: tl.constexpr):
    start = tl.program_id(0) * columns
    top, total = -float("inf"), 0.0
    for i in range(0, columns, BLOCK):
        offsets = i + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + start + offsets, mask=offsets < columns, other=-float("inf")).to(tl.float32)
        new = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - new) + tl.sum(tl.exp(x - new), 0)
        top = new
    for i in range(0, columns, BLOCK):
        offsets = i + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + start + offsets, mask=offsets < columns, other=0.0).to(tl.float32)
        tl.store(y_ptr + start + offsets, x - top - tl.log(total), mask=offsets < columns)


@pytest.mark.parametrize(("kernel", "block", "traffic"), [(log_softmax, 1024, 1), (log_softmax_twice_read, 256, 1.5)])
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
def test_traffic(sanitized: Sanitized, kernel: Any, block: int, traffic: float, dtype: Any) -> None:
    x, y = randn(16, 1000, dtype=dtype), aligned((16, 1000), dtype)
    with sanitized() as san:
        kernel[(16,)](san.own(x, "input"), san.own(y, "output"), 1000, BLOCK=block, num_warps=8)
        assert san.traffic == traffic
        kernel[(8,)](x, y, 1000, BLOCK=block)
    assert san.traffic == 1.5 * traffic
    assert san.least == 2 * x.nbytes
    assert san.issued_by(x) == (1.5 * (2 * traffic - 1) * x.nbytes, 0)
    assert san.issued_by(y) == (0, 1.5 * y.nbytes)
    launch = san.launches[0]
    assert (launch.name, launch.grid) == (kernel.fn.__name__, (16, 1, 1))
    assert (launch.constants, launch.options) == ({"BLOCK": block}, {"num_warps": 8})
    assert (launch.least_read, launch.least_written, launch.written) == (x.nbytes, y.nbytes, y.nbytes)
    assert (san.launches[1].least_read, san.launches[1].least_written) == (x.nbytes // 2, y.nbytes // 2)
    wide = x.astype(np.float64)
    truth = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    np.testing.assert_allclose(y.astype(np.float64), truth, rtol=1e-6 if dtype == np.float32 else 2**-8)


@triton.jit
def strided_copy(x_ptr, y_ptr, stride, modulo, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets % modulo * stride))


@pytest.mark.parametrize(
    ("start", "stride", "modulo", "sectors"),
    [
        (0, 1, 128, 16),
        (1, 1, 128, 17),
        (0, 2, 128, 32),
        (255, -2, 128, 32),
        (0, 8, 128, 128),
        (0, 100, 128, 128),
        (0, 8, 16, 16),  # over and over
        (0, 0, 128, 1),
    ],
)
def test_sectors(sanitized: Sanitized, start: int, stride: int, modulo: int, sectors: int) -> None:
    x, y = aligned((12800,))[start:], aligned((128,))
    x = np.lib.stride_tricks.as_strided(x, (modulo,), (4 * stride,))
    with sanitized() as san:
        strided_copy[(1,)](san.own(x, "input"), san.own(y, "output"), stride, modulo, BLOCK=128)
    launch = san.launches[0]
    assert (launch.read, launch.sectors_read) == (y.nbytes, 32 * sectors)
    assert (launch.written, launch.sectors_written) == (y.nbytes, y.nbytes)
    assert launch.least_read == (x.nbytes if stride else 4)


# --- arguments --------------------------------------------------------------------------------------------------------


@triton.jit
def copy_by_descriptor(x_desc, y_desc, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK
    y_desc.store([at, 0], x_desc.load([at, 0]))


def test_descriptors(sanitized: Sanitized) -> None:
    """Rows and columns beyond the edge are zeros when read, and not written."""
    x, y = randn(20, 24), aligned((20, 32))[:, :24]
    with sanitized() as san:
        for array, role in ((x, "input"), (y, "output")):
            san.own(array, role)
        made = [TensorDescriptor(Described(a), list(a.shape), [s // 4 for s in a.strides], [8, 32]) for a in (x, y)]
        copy_by_descriptor[(3,)](*made, BLOCK=8)
    np.testing.assert_array_equal(x, y)
    assert san.traffic == 1
    with sanitized(check=False) as san:
        made[1] = TensorDescriptor(Described(y), [20, 25], [32, 1], [8, 32])
        copy_by_descriptor[(2,)](*made, BLOCK=8)
    assert kinds(san) == ["padding"]


@triton.jit
def copy_strided(arrays, shape, strides, factor, bias_ptr, negate, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    x = tl.load(arrays[0] + offsets * strides[0], mask=offsets < shape[0], other=0.0) * factor
    if bias_ptr is not None:
        x += tl.load(bias_ptr)
    if negate:
        x = -x
    tl.store(arrays[1] + offsets * strides[1], x.to(DTYPE), mask=offsets < shape[0])


def test_tuples_and_other_arguments(sanitized: Sanitized) -> None:
    x, y = randn(100)[::2], aligned((50,))
    with sanitized() as san:
        san.own(y, "output")
        copy_strided[lambda given: (given["BLOCK"] // 64,)]((x, y), (50,), (2, 1), 0.1, None, True, 64, tl.float32)
    np.testing.assert_array_equal(y, -(x * np.float32(0.1)))
    with sanitized(), pytest.raises(KeyError, match="num_wraps is neither an argument of copy_strided nor an option"):
        copy_strided[(1,)]((x, y), (50,), (2, 1), 0.1, None, True, 64, tl.float32, num_wraps=4)
    with sanitized(), pytest.raises(TypeError, match="str"):
        copy_strided[(1,)]((x, y), (50,), (2, 1), "0.1", None, True, 64, tl.float32)


@triton.jit
def copy_columns(x_ptr, y_ptr, stride_xm, stride_xn, stride_ym, stride_yn, BLOCK: tl.constexpr):
    row, columns = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride_xm + columns * stride_xn)
    tl.store(y_ptr + row * stride_ym + columns * stride_yn, x)


def test_torch_tensors(sanitized: Sanitized) -> None:
    torch = pytest.importorskip("torch")
    x, y = torch.randn(64, 6).bfloat16().T, torch.zeros(6, 64, dtype=torch.bfloat16)
    with sanitized() as san:
        san.own(x, "input"), san.own(y, "output")
        copy_columns[(6,)](x, y, *x.stride(), *y.stride(), BLOCK=64)
    assert torch.equal(x, y)
    assert san.issued_by(x) == (768, 0)


# --- the scope --------------------------------------------------------------------------------------------------------


def state_of_triton() -> list[dict[str, Any]]:
    return [dict(vars(part)) for part in (tl, tl.core, tl.math, tl.tensor, triton.JITFunction, triton.knobs.runtime)]


def compiled() -> str:
    signature = {"x_ptr": "*fp32", "y_ptr": "*fp32", "columns": "i32", "BLOCK": "constexpr"}
    source = ASTSource(log_softmax, signature, constexprs={(3,): 128})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True}).asm["ptx"]


@pytest.mark.filterwarnings("default:TRITON_DEFAULT_FP_FUSION")
def test_compiling_before_and_after(sanitized: Sanitized) -> None:
    """Nothing of the interpreter stays behind, also after an exception."""
    before = state_of_triton()
    x, y = randn(6, 100), aligned((6, 100))
    with sanitized():
        log_softmax[(6,)](x, y, 100, BLOCK=128)
    first = y.copy()
    assert ".visible .entry log_softmax" in compiled()
    with pytest.raises(ZeroDivisionError), sanitized():
        raise ZeroDivisionError
    with sanitized():
        log_softmax[(6,)](x, y, 100, BLOCK=128)
    np.testing.assert_array_equal(first, y)
    assert state_of_triton() == before
    assert not triton.knobs.runtime.interpret
    assert "TRITON_INTERPRET" not in os.environ
    assert "interpreter_semantic" not in globals()


def test_a_module_imported_inside(sanitized: Sanitized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels are not the interpreter's for good."""
    (tmp_path / "imported_inside.py").write_text(
        "import triton\nimport triton.language as tl\n\n@triton.jit\ndef one(y_ptr):\n    tl.store(y_ptr, 1.0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    y = np.zeros(1, np.float32)
    with sanitized():
        from imported_inside import one

        one[(1,)](y)
    assert y[0] == 1
    assert isinstance(one, triton.JITFunction)
    sys.modules.pop("imported_inside")


def test_faults_fail_a_test_once(sanitized: Sanitized) -> None:
    x, y = randn(6, 100), aligned((6, 100))
    with pytest.raises(AssertionError, match=r"unwritten-output in copy_row"):
        copied(sanitized(), x, y, read=100, columns=99, block=128)
    with pytest.raises(OutOfBounds):
        copied(san := sanitized(), x, y, read=200, columns=99, block=256)
    assert kinds(san) == ["out-of-bounds"]  # and not what that has left undone
    with sanitized(check=False) as san:
        for _ in range(3):
            copy_row[(6,)](x, san.own(y, "input"), 100, 100, 100, 100, BLOCK=128)
    assert [fault.kind for fault in san.faults] == ["write-to-input"]
    line = copy_row.fn.__code__.co_firstlineno + 5
    assert f"{__file__}:{line}: a store" in san.faults[0].detail


@triton.jit
def note_order(order_ptr, count_ptr):
    program = tl.program_id(0) * 4 + tl.program_id(1) * 2 + tl.program_id(2)
    tl.store(order_ptr + tl.atomic_add(count_ptr, 1), program)


@pytest.mark.parametrize("seed", ORDERS.values(), ids=ORDERS)
def test_program_order(seed: int) -> None:
    order, count = np.zeros(8, np.int32), np.zeros(1, np.int32)
    with Sanitizer(seed):
        note_order[(2, 2, 2)](order, count)
    expected = {0: range(8), 1: range(7, -1, -1)}.get(seed, np.random.default_rng(seed).permutation(8))
    assert order.tolist() == list(expected)


# --- tilegrad's backends ----------------------------------------------------------------------------------------------


class Implementation:
    """Stands in for a backend: an operation that copies, by way of a workspace."""

    def __init__(self, empty: Callable[..., np.ndarray], columns: int = 128, fill: bool = True) -> None:
        self.empty, self.columns, self.fill = empty, columns, fill

    def run(self, operation: str, x: np.ndarray, dim: int, *, out: np.ndarray, flag: np.ndarray | None = None) -> None:
        workspace = self.empty(x, x.shape)
        if self.fill:
            copy_row[(6,)](x, workspace, 128, 128, 128, 128, BLOCK=128)
        copy_row[(6,)](workspace, out, self.columns, 128, 128, 128, BLOCK=128)


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("tilegrad.backends")
    monkeypatch.setattr(module, "_run", Implementation(lambda *args: module._empty(*args)).run)
    return module


def test_operations_of_the_backends(sanitized: Sanitized, backends: Any) -> None:
    """Arrays given are inputs, those handed in by keyword are outputs, and others are workspace."""
    x, flag = randn(6, 128), np.zeros((), bool)
    with sanitized() as san:
        out = backends._empty(x, x.shape)
        backends._run("copy", x, 1, out=out)
        backends._run("copy", out, 1, out=backends._empty(x, x.shape), flag=flag)
        backends._run("copy", x, 1, out=x)
        assert san.issued_by(out) == (out.nbytes, out.nbytes)
        alive = weakref.ref(out)
        del out
        assert alive() is None
    assert len(san.launches) == 6
    assert san.launches[0].least_read == x.nbytes


@pytest.mark.parametrize(
    ("columns", "fill", "found"), [(127, True, ["unwritten-output"]), (128, False, ["uninitialised-read"])]
)
def test_faults_of_operations(
    sanitized: Sanitized, backends: Any, monkeypatch: pytest.MonkeyPatch, columns: int, fill: bool, found: list[str]
) -> None:
    x = randn(6, 128)
    made = Implementation(lambda *args: backends._empty(*args), columns, fill)
    monkeypatch.setattr(backends, "_run", made.run)
    with sanitized(check=False) as san:
        backends._run("copy", x, 1, out=backends._empty(x, x.shape))
    assert kinds(san) == found
    assert san.faults[0].kernel == ("copy" if columns == 127 else "copy_row")


def test_arrays_outside_of_an_operation(sanitized: Sanitized, backends: Any) -> None:
    """They are as they were when it is over."""
    x, y = randn(6, 128), aligned((6, 128))
    with sanitized(check=False) as san:
        san.own(y, "output")
        backends._run("copy", x, 1, out=backends._empty(x, x.shape))
        copy_row[(5,)](x, y, 128, 128, 128, 128, BLOCK=128)
    assert kinds(san) == ["unwritten-output"]


def test_views(sanitized: Sanitized) -> None:
    """Arrays as the launchers hand them over, on the way that they take."""
    launch = pytest.importorskip("tilegrad.kernels.launch")
    x, y = randn(6, 128)[::2, :100], aligned((3, 100))
    with sanitized() as san:
        a, b = launch.view(san.own(x, "input")), launch.view(san.own(y, "output"))
        launch.launch(copy_row, (3,), a, b, 100, *(v.strides[0] for v in (a, b)), 100, BLOCK=128, num_warps=1)
    np.testing.assert_array_equal(x, y)
    assert san.traffic == 1
