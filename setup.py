"""Everything is declared in pyproject.toml; this file is where the C++ extension will be."""

from setuptools import setup

setup()
