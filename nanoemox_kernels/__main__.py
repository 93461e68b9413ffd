"""`python -m nanoemox_kernels`: which implementation serves each op, and why."""

from . import status

for row in status():
    print(f"{row.op:<18}{row.device:<6}{row.implementation:<11}{row.why}")
