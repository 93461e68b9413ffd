"""Packages and package data; everything else about the project is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["nanoemox", "nanoemox.*", "nanoemox_kernels", "nanoemox_kernels.*"]),
    package_data={
        "nanoemox": ["py.typed"],
        "nanoemox.demo": ["*.json", "*.safetensors", "*.mp4", "README.md"],
        "nanoemox_kernels": ["py.typed", "configs/*.json"],
    },
)
