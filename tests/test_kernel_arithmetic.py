"""Arithmetic: what interpreted kernels compute, which is what the tests of all kernels rely on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import triton
import triton.language as tl
from sanitizer import Sanitizer
from triton.language.extra import libdevice

Sanitized = Callable[..., Sanitizer]
BFLOAT16 = ml_dtypes.bfloat16


def some(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@triton.jit
def matmul(a_ptr, b_ptr, c_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * K + k[None, :])
    b = tl.load(b_ptr + k[:, None] * N + n[None, :])
    c = tl.dot(a, b, input_precision=PRECISION, out_dtype=c_ptr.dtype.element_ty)
    tl.store(c_ptr + m[:, None] * N + n[None, :], c)


@pytest.mark.parametrize(
    ("dtype", "out", "precision", "low", "high"),
    [
        (np.float64, np.float64, "ieee", 0, 1e-15),
        (np.float32, np.float32, "ieee", 1e-9, 1e-6),
        (np.float32, np.float32, "tf32", 2e-4, 1e-3),
        (np.float32, np.float32, "tf32x3", 1e-9, 1e-6),
        (np.float16, np.float32, "ieee", 1e-9, 1e-6),
        (BFLOAT16, np.float32, "ieee", 1e-9, 1e-6),
    ],
)
def test_dot(sanitized: Sanitized, dtype: Any, out: Any, precision: str, low: float, high: float) -> None:
    a, b, c = some(32, 128, dtype=dtype), some(128, 64, dtype=dtype, seed=1), np.empty((32, 64), out)
    with sanitized() as san:
        matmul[(1,)](san.own(a, "input"), san.own(b, "input"), san.own(c, "output"), 32, 64, 128, precision)
    truth = a.astype(np.float64) @ b.astype(np.float64)
    assert low <= np.linalg.norm(c - truth) / np.linalg.norm(truth) < high
    assert san.launches[0].flops == 2 * 32 * 64 * 128


@triton.jit
def cast(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < n, other=0)
    tl.store(y_ptr + offsets, x.to(y_ptr.dtype.element_ty), mask=offsets < n)


def test_float32_to_bfloat16(sanitized: Sanitized) -> None:
    """Every pattern of the upper 18 bits, over both sides of, and at, each tie."""
    upper = np.arange(2**18, dtype=np.uint32) << 14
    x = np.concatenate([upper, upper | 1, upper | 0x3FFF]).view(np.float32)
    y = np.empty(x.size, BFLOAT16)
    with sanitized():
        cast[(-(-x.size // 65536),)](x, y, x.size, BLOCK=65536)
    with np.errstate(all="ignore"):
        expected = x.astype(BFLOAT16)
    same = (y.view(np.uint16) == expected.view(np.uint16)) | (np.isnan(x) & np.isnan(y.astype(np.float32)))
    assert same.all()


def test_float64_to_bfloat16_rounds_once(sanitized: Sanitized) -> None:
    tie = 1 + 2.0**-8
    x = np.array([tie, tie + 2**-40, tie - 2**-40, -tie - 2**-40, 1e300, -1e300, np.inf, np.nan, 1e-300, 0, -0.0, 3])
    y = np.empty(x.size, BFLOAT16)
    with sanitized():
        cast[(1,)](x, y, x.size, BLOCK=16)
    expected = [1, 1 + 2**-7, 1, -1 - 2**-7, np.inf, -np.inf, np.inf, np.nan, 0, 0, -0.0, 3]
    np.testing.assert_array_equal(y.astype(np.float64), expected)
    assert np.signbit(y.astype(np.float64)).tolist() == np.signbit(expected).tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.int64, np.float32, np.float64])
def test_casts_between_bfloat16_and(sanitized: Sanitized, dtype: Any) -> None:
    x = np.array([0, 1, -3, 100, 257, 1000], dtype)
    y, back = np.empty(6, BFLOAT16), np.empty(6, dtype)
    with sanitized():
        cast[(1,)](x, y, 6, BLOCK=8)
        cast[(1,)](y, back, 6, BLOCK=8)
    np.testing.assert_array_equal(y, x.astype(BFLOAT16))
    np.testing.assert_array_equal(back, y.astype(dtype))


@triton.jit
def arithmetic(x_ptr, y_ptr, z_ptr, N: tl.constexpr):
    offsets = tl.arange(0, N)
    x, y = tl.load(x_ptr + offsets), tl.load(y_ptr + offsets)
    tl.store(z_ptr + offsets, x + y)
    tl.store(z_ptr + N + offsets, x - y)
    tl.store(z_ptr + 2 * N + offsets, x * y)
    tl.store(z_ptr + 3 * N + offsets, (x / y).to(z_ptr.dtype.element_ty))
    tl.store(z_ptr + 4 * N + offsets, -x)
    tl.store(z_ptr + 5 * N + offsets, tl.where((x < y) and (y < 1), x, y))
    tl.store(z_ptr + 6 * N + offsets, tl.abs(x))
    tl.store(z_ptr + 7 * N + offsets, tl.fma(x, y, x))
    tl.store(z_ptr + 8 * N + offsets, tl.clamp(x, -y, y))


@pytest.mark.parametrize("dtype", [BFLOAT16, np.float16, np.float32, np.float64])
def test_elementwise(sanitized: Sanitized, dtype: Any) -> None:
    """Each operation is rounded once, fused ones too."""
    x, y, z = some(64, dtype=dtype), some(64, dtype=dtype, seed=1), np.empty((9, 64), dtype)
    with sanitized() as san:
        arithmetic[(1,)](x, y, san.own(z, "output"), N=64)
    a, b = x.astype(np.float64), y.astype(np.float64)
    chosen, clamped = np.where((a < b) & (b < 1), a, b), np.minimum(np.maximum(a, -b), b)
    expected = np.array([a + b, a - b, a * b, a / b, -a, chosen, abs(a), a * b + a, clamped])
    if dtype == np.float64:
        np.testing.assert_allclose(z, expected, rtol=1e-13)  # a·b + a is not exact here
    else:
        np.testing.assert_array_equal(z, expected.astype(dtype))


@triton.jit
def extrema(x_ptr, y_ptr, KEEP: tl.constexpr, N: tl.constexpr):
    offsets = tl.arange(0, N)
    x = tl.load(x_ptr + offsets)
    nan: tl.constexpr = tl.PropagateNan.ALL if KEEP else tl.PropagateNan.NONE
    tl.store(y_ptr + offsets, tl.maximum(x, 1.0, propagate_nan=nan))
    tl.store(y_ptr + N + offsets, tl.minimum(x, 1.0, propagate_nan=nan))
    tl.store(y_ptr + 2 * N + offsets, tl.clamp(x, -1.0, 1.0, propagate_nan=nan))
    tl.store(y_ptr + 3 * N, tl.max(x, 0))
    tl.store(y_ptr + 3 * N + 1, tl.min(x, 0))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
def test_nan_in_extrema(sanitized: Sanitized, keep: bool, dtype: Any) -> None:
    x, y = np.array([0, np.nan, 2, -3], dtype), np.empty(14, dtype)
    with sanitized():
        extrema[(1,)](np.full(4, np.nan, dtype), y, keep, N=4)
        assert np.isnan(y[12:].astype(np.float32)).all()
        extrema[(1,)](x, y, keep, N=4)
    nan = np.nan if keep else None
    expected = [1, nan or 1, 2, 1, 0, nan or 1, 1, -3, 0, nan or -1, 1, -1, 2, -3]
    np.testing.assert_array_equal(y.astype(np.float32), expected)


@triton.jit
def larger(a, b):
    return tl.where(a > b, a, b)


@triton.jit
def combine(top_a, sum_a, top_b, sum_b):
    top = larger(top_a, top_b)
    return top, sum_a * tl.exp(top_a - top) + sum_b * tl.exp(top_b - top)


@triton.jit
def reductions(x_ptr, y_ptr, rows: tl.constexpr, columns: tl.constexpr):
    r, c = tl.arange(0, rows), tl.arange(0, columns)
    x = tl.load(x_ptr + r[:, None] * columns + c[None, :])
    top, total = tl.reduce((x, tl.full((rows, columns), 1.0, tl.float32)), 1, combine)
    tl.store(y_ptr + r, top + tl.log(total))
    value, index = tl.max(x, 1, return_indices=True)
    tl.store(y_ptr + rows + r, value)
    tl.store(y_ptr + 2 * rows + r, index.to(tl.float32))
    tl.store(y_ptr + 3 * rows + r, x.sum(1))
    tl.store(y_ptr + 4 * rows + r[:, None], tl.sum(x, 1, keep_dims=True))
    tl.store(y_ptr + 5 * rows, tl.sum(x))
    tl.store(y_ptr + 5 * rows + 1 + tl.arange(0, 1)[:, None], tl.max(x, keep_dims=True))


def test_reductions(sanitized: Sanitized) -> None:
    x, y = some(8, 64), np.empty(42, np.float32)
    x[:, 3] = x[:, 60] = 5  # the first of equals
    with sanitized() as san:
        reductions[(1,)](x, san.own(y, "output"), 8, 64)
    wide = x.astype(np.float64)
    rows = [
        np.log(np.exp(wide).sum(1)),
        wide.max(1),
        wide.argmax(1),
        wide.sum(1),
        wide.sum(1),
        [wide.sum(), wide.max()],
    ]
    np.testing.assert_allclose(y, np.concatenate(rows), rtol=1e-5, atol=1e-5)


@triton.jit
def functions(x_ptr, y_ptr, N: tl.constexpr):
    offsets = tl.arange(0, N)
    x = tl.load(x_ptr + offsets)
    tl.store(y_ptr + offsets, libdevice.tanh(x))
    tl.store(y_ptr + N + offsets, libdevice.erf(x))
    tl.store(y_ptr + 2 * N + offsets, libdevice.erfc(x))
    tl.store(y_ptr + 3 * N + offsets, libdevice.log1p(tl.abs(x)))
    tl.store(y_ptr + 4 * N + offsets, libdevice.expm1(x))
    tl.store(y_ptr + 5 * N + offsets, tl.sigmoid(x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_libdevice(sanitized: Sanitized, dtype: Any) -> None:
    x, y = np.linspace(-9, 9, 64).astype(dtype), np.empty((6, 64), dtype)
    with sanitized() as san:
        functions[(1,)](x, san.own(y, "output"), N=64)
    known = [math.tanh, math.erf, math.erfc, lambda v: math.log1p(abs(v)), math.expm1, lambda v: 1 / (1 + math.exp(-v))]
    expected = np.array([[f(float(v)) for v in x] for f in known])
    np.testing.assert_allclose(y, expected, rtol=3 * np.finfo(dtype).eps)


def test_libdevice_takes_no_bfloat16(sanitized: Sanitized) -> None:
    with sanitized(), pytest.raises(TypeError, match="bf16"):
        functions[(1,)](np.empty(64, BFLOAT16), np.empty((6, 64), BFLOAT16), N=64)
