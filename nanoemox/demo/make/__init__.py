"""Makes the embedded demo from nothing: `python -m nanoemox.demo.make`."""
