"""Data sets: one that comes with scikit-learn, and readers of MNIST's files and of CSV tables.

Everything is checked before anything is returned; an error names the file, the place, what came and what was
expected.
"""

from __future__ import annotations

import csv as _csv
import gzip
import math
import os
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..creation import from_numpy
from .loader import TensorDataset

Path = str | os.PathLike[str]


class LabelledDataset(TensorDataset):
    """Features and targets, with the names of what they mean.

    Attributes:
        features: float32, (N, ...).
        targets: int64 class indices (N,) below ``len(classes)``; for a regression float32 (N,), no
            ``classes``.
        classes: the name of each class.
        feature_names: the name of each feature where the source names them, else empty.
    """

    def __init__(
        self,
        features: np.ndarray,
        targets: np.ndarray,
        classes: Sequence[str],
        feature_names: Sequence[str] = (),
    ):
        super().__init__(from_numpy(features), from_numpy(targets))
        self.features, self.targets = self.tensors
        self.classes = tuple(classes)
        self.feature_names = tuple(feature_names)


def digits() -> LabelledDataset:
    """1797 handwritten digits of 8×8 pixels, from inside scikit-learn's package: (1797, 64) in [0, 1].

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository (1998).

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("digits() needs scikit-learn, which is not installed: pip install tilegrad[demo]") from None
    raw = load_digits()
    features = (raw.data / 16).astype(np.float32)  # the pixels count 0 to 16
    return LabelledDataset(features, raw.target.astype(np.int64), [str(c) for c in raw.target_names], raw.feature_names)


# --- MNIST's IDX files --------------------------------------------------------------------------------------


def mnist(path: Path, train: bool = True) -> LabelledDataset:
    """The training or the test images of MNIST (or Fashion-MNIST): (N, 1, 28, 28) in [0, 1].

    Its four files carry their original names, ``train-images-idx3-ubyte`` and so on, plain or with ``.gz``,
    in the folder ``path`` itself or in ``MNIST/raw`` or ``raw`` below it. The format: Y. LeCun, C. Cortes, C.
    J. C. Burges, "The MNIST database of handwritten digits".

    Raises:
        FileNotFoundError: the folder or one of its two files is missing.
        ValueError: a wrong magic number or size, a file cut short, unequal numbers of images and labels, a
            label above 9.
    """
    part = "train" if train else "t10k"
    image_file, label_file = _find(path, f"{part}-images", 3), _find(path, f"{part}-labels", 1)
    images, labels = _idx(image_file, 3), _idx(label_file, 1)
    if len(images) != len(labels):
        raise ValueError(
            f"'{label_file}' has {len(labels)} labels, expected {len(images)}, one for each of '{image_file}'"
        )
    if labels.size and labels.max() > 9:
        at = int(np.argmax(labels > 9))
        raise ValueError(f"'{label_file}': label {at} is {labels[at]}, expected 0 to 9")
    features = images[:, None].astype(np.float32) / np.float32(255)
    return LabelledDataset(features, labels.astype(np.int64), [str(c) for c in range(10)])


def _find(path: Path, stem: str, dims: int) -> str:
    folder = os.fspath(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"mnist: there is no folder '{folder}'; expected one with '{stem}-idx{dims}-ubyte'")
    for below in ("", os.path.join("MNIST", "raw"), "raw"):
        for dash in "-.":
            for ending in ("", ".gz"):
                name = os.path.join(folder, below, f"{stem}{dash}idx{dims}-ubyte{ending}")
                if os.path.isfile(name):
                    return name
    raise FileNotFoundError(f"mnist: '{folder}' holds no '{stem}-idx{dims}-ubyte', neither plain nor with '.gz'")


def _idx(name: str, dims: int) -> np.ndarray:
    """An IDX file of bytes: 0, 0, the type 8, the number of sizes, each as big-endian uint32, the data."""
    try:
        with gzip.open(name) if name.endswith(".gz") else open(name, "rb") as file:
            blob = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"'{name}' is not a whole gzip file: {error}") from None
    magic = bytes((0, 0, 8, dims))
    if blob[:4] != magic:
        raise ValueError(
            f"'{name}' starts with the bytes {blob[:4].hex(' ') or 'of an empty file'}, expected {magic.hex(' ')}"
        )
    start = 4 + 4 * dims
    if len(blob) < start:
        raise ValueError(f"'{name}' is cut short: {len(blob)} bytes, expected a header of {start}")
    shape = tuple(int(n) for n in np.frombuffer(blob, ">u4", dims, 4))
    if dims == 3 and shape[1:] != (28, 28):
        raise ValueError(f"'{name}' holds images of {shape[1]}x{shape[2]} pixels, expected 28x28")
    if len(blob) != start + math.prod(shape):
        what = "is cut short" if len(blob) < start + math.prod(shape) else "has bytes left over"
        raise ValueError(
            f"'{name}' {what}: {len(blob)} bytes, expected {start + math.prod(shape)} for the sizes {shape}"
        )
    return np.frombuffer(blob, np.uint8, offset=start).reshape(shape)


# --- CSV ----------------------------------------------------------------------------------------------------


def csv(path: Path, target: str | int = -1, *, task: str = "auto") -> LabelledDataset:
    """A CSV table with a header line: every column but the target is a numeric feature, (N, columns - 1).

    Args:
        target: the target column, by its name or its index (negative: from the right).
        task: "classification" maps the labels to 0, 1, ... in the order of ``classes``: of numbers for
            integers, else of letters. "regression" reads the target as float32. "auto" takes numbers of which
            one has a decimal point or an exponent for a regression, anything else for a classification.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no such column, a row of another length, a value that is not a finite number: with file,
            line and column.
    """
    if task not in ("auto", "classification", "regression"):
        raise ValueError(f"csv: expected task 'auto', 'classification' or 'regression', got {task!r}")
    table = read_table(path)
    at = _column(table, target)
    features = numbers(table, [i for i in range(len(table.header)) if i != at])
    labels = [row[at].strip() for row in table.rows]
    for line, label in zip(table.lines, labels, strict=True):
        if not label:
            raise ValueError(f"'{table.name}', line {line}, column '{table.header[at]}': empty, expected a target")
    integers = all(_is_int(label) for label in labels)
    if task == "regression" or (task == "auto" and not integers and all(_is_float(label) for label in labels)):
        targets, classes = numbers(table, [at])[:, 0], []
    else:
        by_value = {label: int(label) if integers else label for label in labels}  # "1" and "01" are one class
        kinds = sorted(set(by_value.values()))
        index = {kind: i for i, kind in enumerate(kinds)}
        targets = np.array([index[by_value[label]] for label in labels], np.int64)
        classes = [str(kind) for kind in kinds]
    names = [name for i, name in enumerate(table.header) if i != at]
    return LabelledDataset(features, targets, classes, names)


class Table(NamedTuple):
    """A CSV file as text: its rows, each as long as the header, and the line of the file where each ends."""

    name: str
    header: list[str]
    rows: list[list[str]]
    lines: list[int]


def read_table(path: Path) -> Table:
    """Read a CSV file with a header line; blank lines are skipped. Errors as ``csv``."""
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise FileNotFoundError(f"there is no file '{name}', expected a CSV table")
    rows, lines = [], []
    try:
        with open(name, newline="", encoding="utf-8-sig") as file:
            reader = _csv.reader(file)
            for row in reader:
                if row:
                    rows.append(row)
                    lines.append(reader.line_num)
    except (UnicodeDecodeError, _csv.Error) as error:
        raise ValueError(f"'{name}' is not a CSV file in UTF-8: {error}") from None
    if not rows:
        raise ValueError(f"'{name}' is empty, expected a header line and rows of numbers")
    header = [column.strip() for column in rows[0]]
    if all(_is_float(column) for column in header):
        raise ValueError(f"'{name}', line {lines[0]}: numbers, expected a header line with the names of the columns")
    for column in header:
        if header.count(column) > 1:
            raise ValueError(
                f"'{name}', line {lines[0]}: {header.count(column)} columns are called '{column}', expected one"
            )
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise ValueError(f"'{name}', line {line}: {len(row)} columns, expected {len(header)} as in the header")
    if len(rows) == 1:
        raise ValueError(f"'{name}' has a header line only, expected rows of numbers below it")
    return Table(name, header, rows[1:], lines[1:])


def numbers(table: Table, columns: Sequence[int]) -> np.ndarray:
    """These columns of a table as float32, (rows, columns)."""
    if not columns:
        raise ValueError(f"'{table.name}' has only the column '{table.header[0]}', expected features beside the target")
    values = np.empty((len(table.rows), len(columns)), np.float32)
    for j, column in enumerate(columns):
        try:
            with np.errstate(over="ignore"):  # becomes inf
                values[:, j] = [float(row[column]) for row in table.rows]
        except ValueError:
            values[:, j] = math.nan
    if not np.isfinite(values).all():  # the first one in the order of the file
        largest = float(np.finfo(np.float32).max)
        for row, line in zip(table.rows, table.lines, strict=True):
            for column in columns:
                text = row[column]
                if not (_is_float(text) and abs(float(text)) <= largest):
                    came = f"'{text.strip()}'" if text.strip() else "empty"
                    where = f"'{table.name}', line {line}, column '{table.header[column]}'"
                    raise ValueError(f"{where}: {came}, expected a finite number")
    return values


def _column(table: Table, target: str | int) -> int:
    width = len(table.header)
    if isinstance(target, str):
        if target in table.header:
            return table.header.index(target)
        raise ValueError(f"'{table.name}' has no column '{target}', expected one of {', '.join(table.header)}")
    if not -width <= target < width:
        raise ValueError(f"'{table.name}' has no column {target}, expected {-width} to {width - 1}")
    return target % width


def _is_int(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
