"""Packages of a wheel; the folder configs/ becomes the package `linear_transformer.configs`.

pyproject.toml can either find packages or map a folder to another name, but not both.
"""

from setuptools import find_namespace_packages, find_packages, setup

CONFIGS = find_namespace_packages(include=["configs", "configs.*"])

setup(
    packages=[
        *find_packages(include=["linear_transformer", "linear_transformer.*"]),
        *(f"linear_transformer.{name}" for name in CONFIGS),
    ]
)
