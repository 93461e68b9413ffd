"""One folder per op: reference.py is its definition, op.py its schema and checks, kernel.py has Triton kernels."""
