"""A stand-in for the CUDA build of torch, over the stand-in driver and the CPU build."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from . import driver
from .cupy_arrays import Streams


class Torch:
    """torch, imported, as its CUDA build would be; tensors on a GPU; and its current streams."""

    def __init__(self) -> None:
        torch = self.module = pytest.importorskip("torch")
        streams = self.streams = Streams()

        class Current:
            def __init__(self, index: int):
                self.cuda_stream = streams[index]

        def of(device: int | None) -> int:
            return driver.current_device() if device is None else device

        torch.version.cuda = "13.0"
        torch.cuda.is_available = lambda: True
        torch.cuda.current_device, torch.cuda.set_device = driver.current_device, driver.set_device
        torch.cuda.get_device_capability = lambda device=None: driver.capability(of(device))
        torch.cuda.current_stream = lambda device=None: Current(of(device))
        torch._C._cuda_getCurrentRawStream = lambda index: streams[index]  # the CPU build has none
        self._on_gpu = _tensors_on_gpus(torch)

    def empty(self, shape: tuple[int, ...], dtype: str = "float32", device: int = 0, skipped: int = 0) -> Any:
        """A tensor that begins so many bytes into its memory."""
        kind = getattr(self.module, dtype)
        count, before = int(np.prod(shape)), skipped // kind.itemsize
        return self._on_gpu(self.module.empty(before + count, dtype=kind), device)[before:].view(shape)

    def tensor(self, x: np.ndarray, dtype: str, device: int = 0) -> Any:
        return self._on_gpu(self.module.tensor(x).to(getattr(self.module, dtype)), device)

    @staticmethod
    def address(x: Any) -> int:
        return x.data_ptr()


def _tensors_on_gpus(torch: Any) -> Any:
    """A function that puts a tensor of the CPU into one that says that it is on a GPU, as does what is made of it.

    All that torch does to it comes, below autograd, by ``__torch_dispatch__``, on what would be its way to a kernel.
    """
    from torch._library.custom_ops import OPDEFS
    from torch.utils._pytree import tree_leaves, tree_map

    def on_gpu(inner: Any, index: int = 0) -> Any:
        storage = inner.untyped_storage()
        driver.adopt(storage.data_ptr(), storage.nbytes(), index)
        size, strides, dtype = inner.shape, inner.stride(), inner.dtype
        made = torch.Tensor._make_wrapper_subclass(kinds[index], size, strides=strides, dtype=dtype, device="cpu")
        made.inner = inner
        return made

    def runs_nothing(func: Any) -> bool:
        views = [r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns]
        return any(views) or "empty" in func._schema.name

    class OnGpu(torch.Tensor):  # type: ignore[misc, name-defined]
        is_cuda = True
        inner: Any
        __torch_function__ = torch._C._disabled_torch_function_impl

        def data_ptr(self) -> int:
            return self.inner.data_ptr()

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "tilegrad":
                return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
            if not runs_nothing(func):
                driver.note(f"torch kernel {func}")
            given = {id(a.inner): a for a in tree_leaves((args, kwargs)) if isinstance(a, OnGpu)}
            index = next(iter(given.values())).device.index
            args, kwargs = tree_map(lambda a: a.inner if isinstance(a, OnGpu) else a, (args, kwargs))
            made = func(*args, **{k: v for k, v in kwargs.items() if k != "device"})

            def outside(a: Any) -> Any:
                if not isinstance(a, torch.Tensor):
                    return a
                return given[id(a)] if id(a) in given else on_gpu(a, index)

            return tree_map(outside, made)

    kinds = [type(f"OnGpu{i}", (OnGpu,), {"device": torch.device("cuda", i)}) for i in range(2)]
    return on_gpu
