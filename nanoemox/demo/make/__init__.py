"""Makes the embedded demo: `python -m nanoemox.demo.make`. The steps are in build.py."""
