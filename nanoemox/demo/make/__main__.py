"""Runs `python -m nanoemox.demo.make`."""

from .build import main

main()
