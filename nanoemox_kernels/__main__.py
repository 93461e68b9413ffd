"""`python -m nanoemox_kernels`: the implementation of each op, and why; the launch settings of each GPU."""

import torch

from . import is_tuned, status


def main() -> None:
    for row in status():
        print(f"{row.op:<18}{row.device:<6}{row.implementation:<11}{row.why}")
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        settings = "tuned settings" if is_tuned(device) else "default settings (benchmarks/gpu/tune.py tunes)"
        print(f"{device}: {torch.cuda.get_device_name(device)}: {settings}")


if __name__ == "__main__":
    main()
