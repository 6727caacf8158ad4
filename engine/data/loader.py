"""Datasets of samples, their splits, and the loader that makes batches of them, as torch has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from ..creation import from_numpy, randperm, tensor
from ..rng import Generator
from ..shaping import stack
from ..tensor import Tensor

T = TypeVar("T", covariant=True)


class Dataset(Generic[T]):
    """A sequence of samples: subclasses define ``__getitem__`` and ``__len__``."""

    def __getitem__(self, index: Any) -> T:
        raise NotImplementedError(f"{type(self).__name__}: a Dataset defines __getitem__(index)")


class TensorDataset(Dataset[tuple[Tensor, ...]]):
    """Samples that are the rows of tensors: item i is ``(tensors[0][i], tensors[1][i], ...)``.

    Raises:
        TypeError: an argument that is not a Tensor.
        ValueError: no tensor, one without dimensions, or tensors of different lengths.
    """

    tensors: tuple[Tensor, ...]

    def __init__(self, *tensors: Tensor):
        if not tensors:
            raise ValueError("TensorDataset: expected at least one Tensor, got none")
        for t in tensors:
            if not isinstance(t, Tensor):
                raise TypeError(f"TensorDataset: expected Tensors, got {type(t).__name__}")
        if any(t.ndim == 0 for t in tensors) or len({len(t) for t in tensors}) != 1:
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
            raise ValueError(f"TensorDataset: expected tensors with the same first dimension, got shapes {shapes}")
        self.tensors = tensors

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(t[index] for t in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors[0])


class Subset(Dataset[T]):
    """Some samples of a dataset, in the order of ``indices``."""

    def __init__(self, dataset: Dataset[T], indices: Sequence[int]):
        self.dataset = dataset
        self.indices = indices

    def __getitem__(self, index: Any) -> T:
        if isinstance(index, (list, np.ndarray)):
            return self.dataset[[self.indices[i] for i in index]]
        return self.dataset[self.indices[index]]

    def __len__(self) -> int:
        return len(self.indices)


# --- splits -------------------------------------------------------------------------------------------------


def random_split(dataset: Dataset[T], lengths: Sequence[float], generator: Any = None) -> list[Subset[T]]:
    """Disjoint random subsets of a dataset, of these lengths, or of these fractions if they add up to 1.

    What rounding the fractions down leaves over goes to the first subsets, one sample each, as in torch.
    ``generator`` is a ``tilegrad.Generator`` or a seed; without one the global generator draws.

    Raises:
        ValueError: lengths that do not add up to the length of the dataset, or fractions outside [0, 1].
    """
    size = _length(dataset, "random_split")
    if math.isclose(sum(lengths), 1):
        for fraction in lengths:
            if not 0 <= fraction <= 1:
                raise ValueError(f"random_split: expected fractions from 0 to 1, got {fraction}")
        counts = [math.floor(size * fraction) for fraction in lengths]
        for i in range(size - sum(counts)):
            counts[i % len(counts)] += 1
    else:
        counts = [int(n) for n in lengths]
        if any(n != c or c < 0 for n, c in zip(lengths, counts, strict=True)) or sum(counts) != size:
            raise ValueError(
                f"random_split: got lengths {list(lengths)}, which add up to {sum(lengths)}, "
                f"expected the {size} samples of the dataset, or fractions that add up to 1"
            )
    order = _permutation(size, generator).tolist()
    ends = np.cumsum(counts).tolist()
    return [Subset(dataset, order[end - n : end]) for n, end in zip(counts, ends, strict=True)]


def train_validation_test_split(
    dataset: Dataset[T], validation: float = 0.15, test: float = 0.15, *, seed: int = 0
) -> tuple[Subset[T], Subset[T], Subset[T]]:
    """Disjoint random subsets, fixed by ``seed``: the rest to train on, and two of the given fractions.

    Raises:
        ValueError: fractions outside (0, 1), or with a sum of 1 or more; a dataset too small for three parts.
    """
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise ValueError(
            "train_validation_test_split: expected positive fractions with a sum below 1, "
            f"got validation={validation} and test={test}"
        )
    size = _length(dataset, "train_validation_test_split")
    counts = [round(size * validation), round(size * test)]
    if min(*counts, size - sum(counts)) < 1:
        raise ValueError(
            f"train_validation_test_split: {size} samples are too few for a validation part of {validation} "
            f"and a test part of {test}, expected at least one sample in each part"
        )
    a, b, c = random_split(dataset, [*counts, size - sum(counts)], seed)
    return c, a, b


def _length(dataset: Any, caller: str) -> int:
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(f"{caller}: expected a dataset with __len__ and __getitem__, got {type(dataset).__name__}")
    return len(dataset)


def _permutation(n: int, generator: Any) -> np.ndarray:
    """0 to n-1 shuffled by a seed, by a Generator, or by the global generator."""
    if isinstance(generator, (int, np.integer)):
        return np.random.default_rng(int(generator)).permutation(n)
    if generator is not None and not isinstance(generator, Generator):
        raise TypeError(f"expected generator to be a tilegrad.Generator or a seed, got {type(generator).__name__}")
    return randperm(n, generator=generator).numpy()


# --- batches ------------------------------------------------------------------------------------------------


def default_collate(batch: Sequence[Any]) -> Any:
    """Stack samples into a batch, through tuples, lists and dicts: (…) each → (len(batch), …).

    Tensors keep their dtype, NumPy arrays become tensors, Python floats become float64 and ints int64,
    strings stay a list.

    Raises:
        ValueError: samples of different lengths. TypeError: a sample of another kind.
    """
    first = batch[0]
    if isinstance(first, Tensor):
        return stack(list(batch))
    if isinstance(first, (np.ndarray, np.generic)):
        return from_numpy(np.stack(batch))
    if isinstance(first, float):
        return tensor(batch, dtype="float64")
    if isinstance(first, int):  # bool too
        return tensor(list(batch))
    if isinstance(first, (str, bytes)):
        return list(batch)
    if isinstance(first, Mapping):
        return {key: default_collate([sample[key] for sample in batch]) for key in first}
    if isinstance(first, (tuple, list)):
        if any(len(sample) != len(first) for sample in batch):
            raise ValueError(
                f"default_collate: samples of {sorted({len(s) for s in batch})} values, expected one length"
            )
        columns = [default_collate(column) for column in zip(*batch, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else columns  # a namedtuple keeps its type
    raise TypeError(
        "default_collate: expected samples of tensors, arrays, numbers, strings, dicts, tuples or lists, "
        f"got {type(first).__name__}"
    )


class DataLoader(Generic[T]):
    """Iterate over a dataset in batches; every pass with ``shuffle`` has an order of its own.

    Rows of a ``TensorDataset``, also through ``Subset``, are gathered a batch at a time; samples of any other
    dataset are fetched one by one and put together by ``collate_fn``. Batches lie on the device of the
    dataset's tensors, and are copies: changing one leaves the dataset alone.

    Args:
        seed: makes the order depend on this number and on how many passes were begun only (see
            ``set_epoch``). Without it the order comes from ``generator``, and without that from the global
            one (``tilegrad.manual_seed``).
        num_workers, pin_memory: accepted for torch's sake. Batches are made in this process; no result depends on it.

    Raises:
        TypeError: a dataset without ``__len__`` or ``__getitem__``.
        ValueError: ``batch_size`` below 1, ``num_workers`` below 0, or both ``seed`` and ``generator``.
    """

    def __init__(
        self,
        dataset: Dataset[T],
        batch_size: int = 1,
        shuffle: bool | None = False,
        *,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        generator: Any = None,
        seed: int | None = None,
    ):
        _length(dataset, "DataLoader")
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise ValueError(f"DataLoader: expected batch_size to be an integer of at least 1, got {batch_size!r}")
        if num_workers < 0:
            raise ValueError(f"DataLoader: expected num_workers not to be negative, got {num_workers}")
        if seed is not None and generator is not None:
            raise ValueError(f"DataLoader: expected a seed or a generator, got both: seed={seed} and {generator!r}")
        self.dataset = dataset
        self.batch_size = int(batch_size)
        self.shuffle = bool(shuffle)
        self.drop_last = drop_last
        self.collate_fn = collate_fn
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.generator = generator
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the one after ``epoch`` others: with ``seed``, in exactly that one's order."""
        self.epoch = epoch

    def __len__(self) -> int:
        n = len(self.dataset)  # type: ignore[arg-type]
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        n = len(self.dataset)  # type: ignore[arg-type]
        order = None
        if self.shuffle:
            if self.seed is not None:
                order = np.random.default_rng((self.seed, self.epoch)).permutation(n)
            else:
                order = _permutation(n, self.generator)
        self.epoch += 1
        return self._batches(n, order)

    def _batches(self, n: int, order: np.ndarray | None) -> Iterator[Any]:
        tensors, rows = _rows(self.dataset) if self.collate_fn is None else (None, None)
        if rows is not None:
            order = rows if order is None else rows[order]
        collate = self.collate_fn or default_collate
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            stop = min(start + self.batch_size, n)
            if tensors is None:
                chosen: Iterable[int] = range(start, stop) if order is None else order[start:stop].tolist()
                yield collate([self.dataset[i] for i in chosen])
            elif order is None:
                yield [t[start:stop].clone() for t in tensors]  # a plain slice would share the dataset's memory
            else:
                yield [t[order[start:stop]] for t in tensors]


def _rows(dataset: Any) -> tuple[tuple[Tensor, ...] | None, np.ndarray | None]:
    """The tensors below a dataset, and the rows of them that it consists of (None: all); else (None, None).

    A subclass that changes ``__getitem__`` has its samples fetched one by one, so that the change is seen.
    """
    rows: np.ndarray | None = None
    while isinstance(dataset, Subset) and type(dataset).__getitem__ is Subset.__getitem__:
        indices = np.asarray(dataset.indices, np.int64)
        rows = indices if rows is None else indices[rows]
        dataset = dataset.dataset
    if isinstance(dataset, TensorDataset) and type(dataset).__getitem__ is TensorDataset.__getitem__:
        return dataset.tensors, rows
    return None, None
