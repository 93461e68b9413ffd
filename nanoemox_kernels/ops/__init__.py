"""One folder an op: reference.py is the definition, op.py its schema and checks, kernel.py its Triton kernels."""
