"""Where torch keeps its data tools: ``from tilegrad.utils.data import DataLoader``."""

from . import data

__all__ = ["data"]
