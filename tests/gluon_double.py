"""A double of the part of Gluon that kernels/matmul_gluon.py is written in: the kernel's own text runs on it, on a CPU.

It shows whether partitions of warps, copies and products agree (gluon_machine.py), and what the kernel computes. A
partition is one thing here: how its threads agree among themselves is the compiler's work, and so is where an element
of a tile lies in shared memory or in registers.
"""

from __future__ import annotations

import ctypes
import inspect
import math
import random
import textwrap
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from gluon_machine import Barrier, Fault, Machine, Operation, Region, check

# --- global memory ----------------------------------------------------------------------------------------------------


def _memory_of(view: Any, shape: Any, strides: Any) -> np.ndarray:
    """The memory of a View of launch.py's as an array."""
    dtype = np.dtype(ml_dtypes.bfloat16 if view.dtype.name == "bfloat16" else view.dtype.name)
    ends = [s * (n - 1) * dtype.itemsize for n, s in zip(shape, strides, strict=True)]
    low, high = sum(min(0, e) for e in ends), sum(max(0, e) for e in ends) + dtype.itemsize
    memory = (ctypes.c_char * (high - low)).from_address(view.address + low)
    return np.ndarray(tuple(shape), dtype, memory, -low, tuple(s * dtype.itemsize for s in strides))


class Descriptor:
    """A tensor descriptor; ``host`` is what a launcher made."""

    layout = None

    def __init__(self, host: Any):
        self.array = _memory_of(host.base, host.shape, host.strides)
        self.dtype, block = self.array.dtype, list(host.block_shape)
        self.block_type = SimpleNamespace(shape=block, nbytes=math.prod(block) * self.dtype.itemsize)
        self.times_written = np.zeros(self.array.shape, int)

    def at(self, first: list[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Of a block: where in the tensor its part within the edges lies, and where in the block that part does."""
        sizes = [max(0, min(n - i, b)) for i, n, b in zip(first, self.array.shape, self.block_type.shape, strict=True)]
        return tuple(slice(i, i + n) for i, n in zip(first, sizes, strict=True)), tuple(slice(n) for n in sizes)


class Pointer:
    """A pointer to the first element of a View, or, moved by offsets, pointers."""

    def __init__(self, view: Any, offsets: Any = 0):
        self.view, self.offsets = view, offsets

    def __add__(self, offsets: Any) -> Pointer:
        return Pointer(self.view, self.offsets + offsets)


def _load(pointer: Pointer, mask: np.ndarray, other: float) -> Value:
    array = _memory_of(pointer.view, pointer.view.shape, pointer.view.strides)
    (stride,) = pointer.view.strides
    out = np.full(mask.shape, other, array.dtype).view(Value)
    for i in np.flatnonzero(mask):
        offset = int(pointer.offsets[i])
        index = offset // stride if stride else 0
        check(index * stride == offset and 0 <= index < len(array), f"a load {offset} elements from the first")
        out[i] = array[index]
    return out


# --- registers and shared memory --------------------------------------------------------------------------------------


class Value(np.ndarray):
    """A tensor in registers."""

    type = SimpleNamespace(layout=None)

    def to(self, dtype: Any) -> Value:
        return self.astype(dtype)

    def permute(self, order: tuple[int, ...]) -> Value:
        return self.transpose(order)

    def split(self) -> tuple[Value, Value]:
        return self[..., 0].copy(), self[..., 1].copy()


class Running:
    """What a product makes, before it is waited for."""

    def __init__(self, before: Any):
        self.before, self.result = before, None
        self.operation: Operation

    def __getattr__(self, name: str) -> NoReturn:
        raise Fault("a result is used while its product may still be running")


class Shared:
    """Shared memory for several tiles or barriers, or one of them."""

    def __init__(self, language: Language, array: np.ndarray, kept: list[Any]):
        self.language, self.array, self.kept, self.shape = language, array, kept, array.shape

    def index(self, i: int) -> Shared:
        check(0 <= i < len(self.kept), f"a tile {i} of {len(self.kept)}")
        return Shared(self.language, self.array[i], [self.kept[i]])

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.language, self.array.transpose(order), self.kept)

    def store(self, value: Value) -> None:
        p, event = self.language.machine.turn()
        p.known |= event
        self.kept[0].write(p, event, threads=True)
        assert value.dtype == self.array.dtype
        self.array[...] = value


# --- the language -----------------------------------------------------------------------------------------------------


class Language:
    """What the names of Gluon mean in a program."""

    def __init__(self, machine: Machine, program: int, programs: int):
        self.machine = machine
        self.gl = SimpleNamespace(
            float32=np.float32, int64=np.int64, static_range=range, minimum=min, expand_dims=np.expand_dims, load=_load,
            where=lambda condition, x, y: x if condition else y, cdiv=lambda x, y: -(-x // y), num_warps=lambda: 4,
            static_assert=lambda condition: check(condition, "a static_assert"),
            program_id=lambda axis: program, num_programs=lambda axis: programs,
            zeros=lambda shape, dtype, layout: np.zeros(shape, dtype).view(Value),
            arange=lambda start, end, layout: np.arange(start, end, dtype=np.int32).view(Value),
            NVMMADistributedLayout=lambda *args: None, SliceLayout=lambda *args: None,
            allocate_shared_memory=self.allocate, warp_specialize=machine.specialize,
        )  # fmt: skip
        self.mbarrier = SimpleNamespace(
            init=self.init, expect=self.expect, arrive=self.arrive, wait=self.wait, MBarrierLayout=lambda: Barrier
        )

    def names(self) -> dict[str, Any]:
        return {
            "gl": self.gl, "tl": self.gl, "mbarrier": self.mbarrier, "fence_async_shared": self.fence,
            "warpgroup_mma": self.multiply, "warpgroup_mma_wait": self.multiply_wait,
            "bulk_load": self.load, "bulk_store": self.store, "bulk_store_wait": self.store_wait,
        }  # fmt: skip

    def allocate(self, dtype: Any, shape: list[int], layout: Any) -> Shared:
        array = np.full(shape, 0 if layout is Barrier else np.nan, dtype)
        return Shared(self, array, [Barrier() if layout is Barrier else Region() for _ in range(shape[0])])

    def fence(self) -> None:
        p, _ = self.machine.turn()
        p.fenced = p.known

    # Barriers.

    def init(self, barrier: Shared, count: int) -> None:
        p, event = self.machine.turn()
        p.known |= event
        barrier.kept[0].init(p, event, count)

    def expect(self, barrier: Shared, nbytes: int) -> None:
        p, _ = self.machine.turn()
        barrier.kept[0].use(p)
        barrier.kept[0].change(p.known, 1, nbytes)

    def arrive(self, barrier: Shared, pred: bool = True) -> None:
        p, _ = self.machine.turn()
        barrier.kept[0].use(p)
        if pred:
            barrier.kept[0].change(p.known, 1)

    def wait(self, barrier: Shared, parity: int) -> None:
        (b,) = barrier.kept
        b.use(self.machine.current)
        p, _ = self.machine.turn(lambda: b.is_complete(parity))
        p.known |= b.tells

    # Bulk copies.

    def load(self, desc: Descriptor, first: list[int], barrier: Shared, to: Shared) -> None:
        p, event = self.machine.turn()
        barrier.kept[0].use(p, copy=True)
        to.kept[0].write(p, event, threads=False)
        assert (list(to.shape), to.array.dtype) == (desc.block_type.shape, desc.dtype)
        to.array[...] = np.nan
        where, part = desc.at(first)

        def arrive() -> None:
            to.array[...] = 0
            to.array[part] = desc.array[where]
            barrier.kept[0].change(event, nbytes=-desc.block_type.nbytes)

        self.machine.begin("load", event, arrive)

    def store(self, desc: Descriptor, first: list[int], source: Shared) -> None:
        p, event = self.machine.turn()
        source.kept[0].read(p, event)
        assert (list(source.shape), source.array.dtype) == (desc.block_type.shape, desc.dtype)
        where, part = desc.at(first)
        read: list[np.ndarray] = []

        def write() -> None:
            desc.times_written[where] += 1
            desc.array[where] = read[0]

        p.stores.append(self.machine.begin("store", event, lambda: read.append(source.array[part].copy()), write))

    def store_wait(self, pending: int) -> None:
        stores = self.machine.current.stores
        self.machine.wait_for(stores[: max(0, len(stores) - pending)])

    # Products.

    def multiply(self, a: Shared, b: Shared, acc: Any, is_async: bool) -> Running:
        p, event = self.machine.turn()
        assert is_async
        for operand in (a, b):
            operand.kept[0].read(p, event)
        made = Running(acc)

        def finish() -> None:
            before = acc.result if isinstance(acc, Running) else acc
            made.result = (before + a.array.astype(np.float32) @ b.array.astype(np.float32)).view(Value)

        made.operation = self.machine.begin("product", event, finish, after=p.products[-1] if p.products else None)
        p.products.append(made.operation)
        return made

    def multiply_wait(self, running: int, deps: tuple[Running]) -> Any:
        products = self.machine.current.products
        due = products[: max(0, len(products) - running)]
        self.machine.wait_for(due)
        return deps[0].result if deps[0].operation in due else deps[0]


# --- a launch ---------------------------------------------------------------------------------------------------------


def text_of(module: ModuleType, old: str = "", new: str = "") -> CodeType:
    """The text of all jitted functions that a module has or imports; with something else in the place of ``old``."""
    jitted = [f.fn for f in vars(module).values() if inspect.isfunction(getattr(f, "fn", None))]
    texts = [textwrap.dedent(inspect.getsource(fn)) for fn in jitted]
    whole = "\n".join(text[text.index("def ") :] for text in texts)
    assert not old or whole.count(old) == 1, f"{old!r} occurs {whole.count(old)} times"
    whole = whole.replace(old, new) if old else whole
    return compile("from __future__ import annotations\n" + whole, "the kernel", "exec")


def run(module: ModuleType, kernel: str, programs: int, args: list[Any], text: CodeType, seed: int) -> None:
    """Run all programs of a launch, in a random order."""
    draw = random.Random(seed)
    for program in draw.sample(range(programs), programs):
        names = {name: v.value for name, v in vars(module).items() if type(v).__name__ == "constexpr"}
        names |= Language(Machine(draw), program, programs).names()
        exec(text, names)
        names[kernel](*args)
