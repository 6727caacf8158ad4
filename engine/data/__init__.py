"""Data: datasets, splits and batches, under torch's names, and readers of data sets on disk."""

from .datasets import LabelledDataset, csv, digits, mnist
from .loader import (
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    default_collate,
    random_split,
    train_validation_test_split,
)

__all__ = [
    "DataLoader", "Dataset", "LabelledDataset", "Subset", "TensorDataset", "csv", "default_collate", "digits",
    "mnist", "random_split", "train_validation_test_split",
]  # fmt: skip
