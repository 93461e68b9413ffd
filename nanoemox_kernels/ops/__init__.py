"""A folder per op: reference.py has its definition, op.py its schema and checks, kernel.py Triton kernels."""
