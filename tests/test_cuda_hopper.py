"""Where the emulator has bulk tensor copies and wgmma expect elements in shared memory, against NVIDIA's own formulas.

They are those of CuTe, in which the PTX ISA (9.7.15.5.1.2) states them, too: a layout of 16-byte pieces, and
Swizzle<B, 4, 3>, which changes B bits of an address, from bit 4 on, by those three above. No run on a CPU can prove
more than that the emulator follows them.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np
import pytest
from cuda_emulator import build

ROOT = Path(__file__).resolve().parents[1]
SWIZZLES = (0, 32, 64, 128)  # bytes
N = 128

_int64, _pointer = ctypes.c_int64, ctypes.c_void_p


@functools.cache
def library() -> ctypes.CDLL:
    found = ctypes.CDLL(
        str(build.library([ROOT / "tests/hopper_layouts.cu"], includes=[ROOT / "csrc", ROOT / "tests"]))
    )
    sizes = (_int64, _int64, _int64, ctypes.c_int, ctypes.c_int, ctypes.c_int)
    found.encode_error.argtypes = (_pointer, *sizes)
    found.copy_box.argtypes = (ctypes.c_int, _pointer, *sizes, ctypes.c_int, ctypes.c_int, _pointer)
    found.multiply.argtypes = (
        ctypes.c_int, ctypes.c_int, _pointer, ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, _pointer,
    )  # fmt: skip
    found.copy_box.restype = found.multiply.restype = ctypes.c_char_p
    found.cuda_emulator_configure(ctypes.c_uint64(0), 0, 1, 90)  # copies complete late
    return found


def swizzled(address: np.ndarray, swizzle: int) -> np.ndarray:
    """Swizzle<B, 4, 3> with B = log2(swizzle / 16), of byte addresses."""
    bits = max(swizzle // 16, 1) - 1
    return address ^ ((address >> 7 & bits) << 4)


# --- bulk copies ------------------------------------------------------------------------------------------------------


def expected_image(tensor: np.ndarray, box: tuple[int, int], x: int, y: int, swizzle: int) -> np.ndarray:
    """The box in shared memory: zeros where there is no tensor."""
    padded = np.pad(tensor, 128)[y + 128 : y + 128 + box[1], x + 128 : x + 128 + box[0]]
    image = np.zeros(box[0] * box[1], np.float16)
    image[swizzled(np.arange(image.size) * 2, swizzle) // 2] = padded.reshape(-1)
    return image


@pytest.mark.parametrize(("x", "y"), [(0, 0), (8, 3), (-5, -2), (37, 17), (60, 60)])
@pytest.mark.parametrize("swizzle", SWIZZLES)
def test_loads_and_stores_of_boxes(swizzle: int, x: int, y: int) -> None:
    rng = np.random.default_rng(0)
    tensor = rng.standard_normal((19, 48)).astype(np.float16)[:, :41]  # 41 columns, 48 apart
    box = (swizzle // 2 or 24, 16)
    image = np.empty(box[0] * box[1], np.float16)
    place = (*tensor.shape[::-1], 48, *box, swizzle, x, y)
    assert library().copy_box(0, tensor.ctypes.data, *place, image.ctypes.data) is None
    np.testing.assert_array_equal(image, expected_image(tensor, box, x, y, swizzle))

    stored = np.zeros((19, 48), np.float16)
    assert library().copy_box(1, stored.ctypes.data, *place, image.ctypes.data) is None
    inside = np.zeros_like(stored)
    rows, columns = slice(max(y, 0), max(y + box[1], 0)), slice(max(x, 0), min(max(x + box[0], 0), 41))
    inside[rows, columns] = tensor[rows, columns]
    np.testing.assert_array_equal(stored, inside)


def test_tensor_maps_that_the_driver_refuses() -> None:
    tensor = np.zeros(4096, np.float16)
    address = tensor.ctypes.data + -tensor.ctypes.data % 16
    encode = library().encode_error
    assert encode(address, 64, 16, 64, 64, 16, 128) == 0
    for sizes in (
        (address + 2, 64, 16, 64, 64, 16, 128),  # an address that is no multiple of 16
        (address, 60, 16, 60, 60, 16, 0),  # a stride of 120 bytes
        (address, 0, 16, 64, 64, 16, 128),  # no columns
        (address, 64, 16, 64, 64, 257, 128),  # a box of more than 256 rows
        (address, 64, 16, 64, 12, 16, 0),  # rows of a box of 24 bytes
        (address, 64, 16, 64, 64, 16, 64),  # rows of a box that are longer than the swizzle
    ):
        assert encode(*sizes) == 1  # CUDA_ERROR_INVALID_VALUE


# --- wgmma ------------------------------------------------------------------------------------------------------------


class Layout:
    """One of CuTe's canonical layouts of a matrix (rows, 16) of 16-bit elements, T of them in 16 bytes."""

    def __init__(self, rows: int, swizzle: int, along_rows: bool) -> None:
        self.swizzle = swizzle
        row, k = np.meshgrid(np.arange(rows), np.arange(16), indexing="ij")
        t, pieces = 8, max(swizzle // 16, 1)  # 16-byte pieces that the swizzle spans
        if along_rows and swizzle:
            # ((T, pieces, m), (8, k)) : ((1, T, LBO), (pieces T, SBO))
            self.stride, self.leading = 8 * 2 * pieces * t, 2 * 8 * 2 * pieces * t
            offset = row % (pieces * t) * 2 + k % 8 * 2 * pieces * t
            offset = offset + row // (pieces * t) * self.leading + k // 8 * self.stride
        elif along_rows:
            # ((T, 1, m), (8, k)) : ((1, T, SBO), (1T, LBO))
            self.stride, self.leading = 256, 128
            offset = row % t * 2 + row // t * self.stride + k % 8 * 2 * t + k // 8 * self.leading
        elif swizzle:
            # ((8, m), (T, 2)) : ((pieces T, SBO), (1, T))
            self.stride, self.leading = 8 * 2 * pieces * t, 16
            offset = row % 8 * 2 * pieces * t + row // 8 * self.stride + k * 2
        else:
            # ((8, m), (T, 2)) : ((1T, SBO), (1, LBO))
            self.stride, self.leading = 256, 128
            offset = row % 8 * 2 * t + row // 8 * self.stride + k % t * 2 + k // t * self.leading
        self.offsets = swizzled(offset, swizzle)
        self.bytes = -(-(int(offset.max()) + 2) // 1024) * 1024

    def descriptor(self, start: int) -> int:
        mode = {0: 0, 128: 1, 64: 2, 32: 3}[self.swizzle]
        return start >> 4 | self.leading >> 4 << 16 | self.stride >> 4 << 32 | mode << 62


@pytest.mark.parametrize("swizzles", [(0, 0), (32, 32), (64, 64), (128, 128), (128, 32), (0, 64)], ids=str)
@pytest.mark.parametrize("a_along_rows", [False, True])
@pytest.mark.parametrize("b_along_rows", [False, True])
def test_products_of_every_layout(swizzles: tuple[int, int], a_along_rows: bool, b_along_rows: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((64, 16)).astype(np.float16), rng.standard_normal((N, 16)).astype(np.float16)
    of_a, of_b = Layout(64, swizzles[0], a_along_rows), Layout(N, swizzles[1], b_along_rows)
    image = np.zeros((of_a.bytes + of_b.bytes) // 2, np.float16)
    image[of_a.offsets // 2] = a
    image[(of_a.bytes + of_b.offsets) // 2] = b
    sums = np.empty((4, 8, 4, N // 8, 2, 2), np.float32)  # (warp, lane / 4, lane % 4, columns / 8, half, column % 2)
    error = library().multiply(
        a_along_rows, b_along_rows, image.ctypes.data, image.nbytes, of_a.descriptor(0), of_b.descriptor(of_a.bytes),
        sums.ctypes.data,
    )  # fmt: skip
    assert error is None, error
    # PTX ISA, figure of the accumulator's fragments: row 16 warp + 8 half + lane / 4, column 8 j + 2 (lane % 4) + c.
    result = sums.transpose(0, 4, 1, 3, 2, 5).reshape(64, N)
    np.testing.assert_allclose(result, a.astype(np.float64) @ b.astype(np.float64).T, rtol=0, atol=1e-5)
