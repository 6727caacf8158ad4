"""The data sets that a command line can name: ``digits``, ``mnist:FOLDER``, ``csv:FILE[:TARGET]``."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass

import numpy as np

from .. import data
from .errors import UserError, user_errors

SPELLINGS = "digits, mnist:FOLDER or csv:FILE[:TARGET]"
VALIDATION = TEST = 0.15  # the parts held out; MNIST brings its own test images

Part = tuple[np.ndarray, np.ndarray]  # features (n, D) float32, class indices (n,) int64


@dataclass
class Source:
    """A data set as the commands use it: flat features, class indices, and the names of both."""

    name: str
    features: np.ndarray  # (N, D) float32
    targets: np.ndarray  # (N,) int64
    classes: list[str]
    feature_names: list[str]
    same_unit: bool  # whether all features are one kind of quantity, as pixels are
    test: Part | None = None  # where the data set has its own

    @property
    def checksum(self) -> int:
        """A CRC-32 of the data, to notice a file that changed between two runs."""
        return zlib.crc32(self.targets.tobytes(), zlib.crc32(self.features.tobytes()))

    def split(self, seed: int) -> dict[str, Part]:
        """The parts "train", "validation" and "test", fixed by the seed."""
        whole = data.LabelledDataset(self.features, self.targets, self.classes)
        if self.test is None:
            with user_errors(ValueError):  # too few rows
                subsets = [*data.train_validation_test_split(whole, VALIDATION, TEST, seed=seed)]
        else:
            subsets = data.random_split(whole, [1 - VALIDATION, VALIDATION], seed)
        named = zip(("train", "validation", "test"), subsets, strict=False)
        parts = {name: (self.features[s.indices], self.targets[s.indices]) for name, s in named}
        return parts if self.test is None else parts | {"test": self.test}


def short_name(spec: str) -> str:
    """What a data set is called in titles and folders: ``csv:tables/iris.csv:kind`` is ``iris``."""
    kind, _, rest = spec.partition(":")
    return os.path.splitext(os.path.basename(_csv_parts(rest)[0]))[0] if kind == "csv" else kind


def load_source(spec: str, part: str = "train") -> Source:
    """Read a data set; for ``part="test"``, of MNIST its test images. A UserError says what is wrong."""
    kind, _, rest = spec.partition(":")
    if kind not in ("digits", "mnist", "csv") or (kind == "digits") == bool(rest):
        raise UserError(f"there is no data set '{spec}', expected {SPELLINGS}")
    with user_errors(ValueError, OSError, ImportError):
        test = None
        if kind == "digits":
            dataset = data.digits()
        elif kind == "mnist":
            dataset = data.mnist(rest, train=part == "train")
            test = _flat(data.mnist(rest, train=False)) if part == "train" else None
        else:
            path, target = _csv_parts(rest)
            dataset = data.csv(path, target)
            if not dataset.classes:
                raise ValueError(
                    f"'{path}': the target column holds real numbers, expected names or numbers of classes"
                )
        if len(dataset.classes) < 2:
            raise ValueError(f"'{spec}' has {len(dataset.classes)} class, expected at least 2")
    features, targets = _flat(dataset)
    names = list(dataset.feature_names)
    return Source(short_name(spec), features, targets, list(dataset.classes), names, kind != "csv", test)


def _flat(dataset: data.LabelledDataset) -> Part:
    features = dataset.features.numpy()
    return features.reshape(len(features), -1), dataset.targets.numpy()


def _csv_parts(rest: str) -> tuple[str, str | int]:
    """FILE or FILE:TARGET, where a whole number is the index of a column and anything else its name."""
    path, colon, target = rest.rpartition(":")
    if not colon or os.path.isfile(rest):
        return rest, -1
    return path, int(target) if target.lstrip("-").isdigit() else target
