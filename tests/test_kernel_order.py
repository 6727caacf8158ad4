"""Order: between the programs of a launch, which atomics make, and between the threads of one, which barriers make."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import triton
import triton.language as tl
from sanitizer import Sanitizer, every_order
from sanitizer.order import Order

Sanitized = Callable[..., Sanitizer]


def kinds(san: Sanitizer) -> list[str]:
    """The kinds of the faults, each once."""
    return list(dict.fromkeys(fault.kind for fault in san.faults))


def some(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


# --- between programs -------------------------------------------------------------------------------------------------


@triton.jit
def write_rows(y_ptr, per_row, value, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    tl.store(y_ptr + program // per_row * BLOCK + tl.arange(0, BLOCK), program * value + tl.zeros((BLOCK,), tl.float32))


@every_order
def test_race_of_writes(sanitized: Sanitized) -> None:
    y = np.zeros((8, 128), np.float32)
    with sanitized(check=False) as san:
        write_rows[(8,)](san.own(y[:4], "output"), 2, 1, BLOCK=128)
    assert kinds(san) == ["race"]
    with sanitized() as san:
        write_rows[(8,)](san.own(y, "output"), 1, 1, BLOCK=128)
        write_rows[(8,)](y, 2, 0, BLOCK=128)  # the same from all: nothing to race for


@triton.jit
def shift_rows(x_ptr, y_ptr, by, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + (row + by) * BLOCK + offsets)
    tl.store(y_ptr + row * BLOCK + offsets, x)


@every_order
def test_race_of_read_and_write(sanitized: Sanitized) -> None:
    x = some(9, 128)
    with sanitized(check=False) as san:
        shift_rows[(8,)](x, x, 1, BLOCK=128)
    assert kinds(san) == ["race"]
    with sanitized() as san:
        shift_rows[(8,)](x, x, 0, BLOCK=128)
        shift_rows[(8,)](x, np.zeros((8, 128), np.float32), 1, BLOCK=128)


@triton.jit
def add_up(x_ptr, partial_ptr, count_ptr, y_ptr, programs, SEM: tl.constexpr, WAIT: tl.constexpr, BLOCK: tl.constexpr):
    """Each program stores the sum of a block, and the one that is the last to arrive adds them up."""
    program = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    tl.store(partial_ptr + program, tl.sum(tl.load(x_ptr + program * BLOCK + offsets), 0))
    if WAIT:
        tl.debug_barrier()
    if tl.atomic_add(count_ptr, 1, sem=SEM) == programs - 1:
        partials = tl.load(partial_ptr + offsets, mask=offsets < programs, other=0.0)
        tl.store(y_ptr, tl.sum(partials, 0))
        tl.store(count_ptr, 0)


def summed(san: Sanitizer, sem: str, wait: bool) -> None:
    x, partials, count, y = some(8, 16), np.zeros(8, np.float32), np.zeros(1, np.int32), np.zeros(1, np.float32)
    with san:
        san.own(x, "input"), san.own(partials, "workspace"), san.own(count, "inout"), san.own(y, "output")
        for _ in range(2):  # the count is left as it was found
            add_up[(8,)](x, partials, count, y, 8, sem, wait, BLOCK=16, num_warps=1)
    np.testing.assert_allclose(y[0], x.sum(dtype=np.float64), rtol=1e-5)


@every_order
def test_the_last_to_arrive(sanitized: Sanitized) -> None:
    summed(sanitized(), "acq_rel", True)


@every_order
@pytest.mark.parametrize(("sem", "wait"), [("relaxed", True), ("release", True), ("acquire", True), ("acq_rel", False)])
def test_the_last_to_arrive_too_early(sanitized: Sanitized, sem: str, wait: bool) -> None:
    summed(san := sanitized(check=False), sem, wait)
    assert kinds(san) == ["race"]
    assert any("a load in workspace" in fault.detail for fault in san.faults)


@triton.jit
def hand_on(y_ptr, turn_ptr, LOCKED: tl.constexpr):
    """Each program adds one to what the one before has left, under a lock."""
    if LOCKED:
        while tl.atomic_cas(turn_ptr, 0, 1) == 1:
            pass
    tl.store(y_ptr, tl.load(y_ptr) + 1)
    tl.debug_barrier()
    if LOCKED:
        tl.atomic_xchg(turn_ptr, 0)


@every_order
def test_a_lock(sanitized: Sanitized) -> None:
    y, turn = np.zeros(1, np.float32), np.zeros(1, np.int32)
    with sanitized():
        hand_on[(8,)](y, turn, True)
    assert y[0] == 8
    with sanitized(check=False) as san:
        hand_on[(8,)](y, turn, False)
    assert kinds(san) == ["race"]


@triton.jit
def accumulate(x_ptr, y_ptr, ATOMIC: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * BLOCK + offsets)
    if ATOMIC:
        tl.atomic_add(y_ptr + offsets, x, sem="relaxed")
    else:
        tl.store(y_ptr + offsets, tl.load(y_ptr + offsets) + x)


@every_order
def test_atomics_do_not_race(sanitized: Sanitized) -> None:
    x, y = some(4, 128), np.zeros(128, np.float32)
    with sanitized():
        accumulate[(4,)](x, y, True, BLOCK=128)
    np.testing.assert_allclose(y, x.sum(0), atol=1e-5)
    with sanitized(check=False) as san:
        accumulate[(4,)](x, y, False, BLOCK=128)
    assert kinds(san) == ["race"]


@triton.jit
def atomics_and_a_load(y_ptr, z_ptr):
    if tl.program_id(0) == 0:
        tl.store(z_ptr, tl.load(y_ptr))
    else:
        tl.atomic_add(y_ptr, 1)


@every_order
def test_an_atomic_races_with_a_load(sanitized: Sanitized) -> None:
    y, z = np.zeros(1, np.int32), np.zeros(1, np.int32)
    with sanitized(check=False) as san:
        atomics_and_a_load[(4,)](y, z)
    assert kinds(san) == ["race"]


@triton.jit
def set_a_flag(flag_ptr, turn_ptr, z_ptr):
    """Two programs set it, one of which says so, and the third looks."""
    program = tl.program_id(0)
    if program < 2:
        tl.store(flag_ptr, 1)
    tl.debug_barrier()
    if program == 1:
        tl.atomic_add(turn_ptr, 1)
    if program == 2:
        turn = tl.atomic_add(turn_ptr, 0)
        tl.store(z_ptr, tl.load(flag_ptr, mask=turn == 1, other=0))


def test_a_flag_that_many_set() -> None:
    flag, turn, z = (np.zeros(1, np.int32) for _ in range(3))
    with Sanitizer():
        set_a_flag[(2,)](flag, turn, z)
    with Sanitizer(check=False) as san:
        set_a_flag[(3,)](flag, np.zeros(1, np.int32), z)
    assert "in no order with writes by program 0" in san.faults[0].detail


# --- between threads --------------------------------------------------------------------------------------------------


@triton.jit
def store_modulo(y_ptr, by, value, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets % by, offsets * value)


def test_duplicate_store(sanitized: Sanitized) -> None:
    y = np.zeros(128, np.int32)
    with sanitized(check=False) as san:
        store_modulo[(1,)](y, 64, 1, BLOCK=128)
    assert kinds(san) == ["duplicate-store"]
    with sanitized():
        store_modulo[(1,)](y, 64, 0, BLOCK=128)  # one value
        store_modulo[(1,)](y, 128, 1, BLOCK=128)


@triton.jit
def reverse_through_memory(x_ptr, y_ptr, WAIT: tl.constexpr, TURN: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets))
    if WAIT:
        tl.debug_barrier()
    y = tl.load(y_ptr + (BLOCK - 1 - offsets if TURN else offsets))
    tl.debug_barrier()
    tl.store(y_ptr + offsets, y)


@pytest.mark.parametrize(
    ("wait", "turn", "block", "warps", "found"),
    [
        (True, True, 128, 4, []),
        (False, True, 128, 4, ["missing-barrier"]),
        (False, False, 128, 4, []),  # each thread has what it loads
        (False, False, 128, 8, ["missing-barrier"]),  # half the threads load what they did not store
        (True, False, 128, 8, []),
    ],
)
def test_missing_barrier(
    sanitized: Sanitized, wait: bool, turn: bool, block: int, warps: int, found: list[str]
) -> None:
    x, y = some(128), np.zeros(128, np.float32)
    with sanitized(check=False) as san:
        reverse_through_memory[(1,)](x, san.own(y, "output"), wait, turn, BLOCK=block, num_warps=warps)
    assert kinds(san) == found


@triton.jit
def store_twice(y_ptr, WAIT: tl.constexpr, SHIFT: tl.constexpr, FACTOR: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, FACTOR * offsets)
    if WAIT:
        tl.debug_barrier()
    tl.store(y_ptr + offsets + SHIFT, FACTOR * offsets)


@pytest.mark.parametrize(
    ("wait", "shift", "factor", "found"),
    [
        (False, 1, 1, ["missing-barrier"]),
        (True, 1, 1, []),
        (False, 0, 1, []),  # by the same threads
        (False, 1, 0, []),  # the same values
    ],
)
def test_missing_barrier_between_stores(
    sanitized: Sanitized, wait: bool, shift: int, factor: int, found: list[str]
) -> None:
    y = np.zeros(129, np.int32)
    with sanitized(check=False) as san:
        store_twice[(1,)](y, wait, shift, factor, BLOCK=128)
    assert kinds(san) == found


# --- vector clocks ----------------------------------------------------------------------------------------------------


class Programs:
    """A program is begun, and told what it does, by one word each: "2 +a -b" is program 2, which acquires at address a
    and releases at b; "w" and "r" write and read one unit, "|" is a barrier."""

    def __init__(self, story: str) -> None:
        self.order, self.writes, self.reads = Order(4), np.zeros(1, np.int32), np.zeros(1, np.int32)
        for word in story.split():
            if word.isdigit():
                self.order.begin(int(word))
            elif word == "w":
                self.order.record(self.writes, slice(0, 1), chain=False)
            elif word == "r":
                self.order.record(self.reads, slice(0, 1), chain=True)
            elif word == "|":
                self.order.barrier()
            else:
                self.order.synchronize(ord(word[-1]), "+" in word, "-" in word)
            found = self.order.unordered(self.writes) | self.order.unordered(self.reads)
            self.unordered = sorted(found.values())  # with which programs this one now is in no order


@pytest.mark.parametrize(
    ("story", "unordered"),
    [
        ("0 w | -a 1 +a", []),
        ("0 w | -a 1", [0]),
        ("0 w | -a 1 +b", [0]),
        ("0 w -a 1 +a", [0]),  # no barrier
        ("0 w -b -a 1 +a", []),  # the first atomic was one
        ("0 -a w 1 +a", [0]),  # too late
        ("0 w | -a 1 +a -b 2 +b", []),  # handed on
        ("0 w | -a 1 +a 2 +b", [0]),
        ("0 w | -a 1 -a 2 +a", []),  # another release there takes nothing back
        ("0 w | -a 1 -b 2 +a +b", []),  # nor does another acquire
        ("0 w | -a 1 +a w 2 +a", [1]),
        ("0 r 1 r | -a 2 +a", [0]),  # of all that read one is in no order
        ("0 r | -a 1 r | -+a 2 +a", []),
        ("0 w | -a 1 +a 2", [0]),  # what one program has seen the next one has not
    ],
)
def test_what_comes_before(story: str, unordered: list[int]) -> None:
    assert Programs(story).unordered == unordered


def test_the_same_access_again_is_not_kept() -> None:
    assert Programs("0 r 1 r r r r").reads == Programs("0 r 1 r").reads
