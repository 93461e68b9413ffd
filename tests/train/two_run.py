"""torchrun ... two_run.py FOLDER BUNDLE BATCH: the tiny curriculum without dropout, on the CPU."""

import sys
from pathlib import Path

import torch
from tiny_training import Reader, config, datasets

from nanoemox.train.run import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, bundle, batch = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    sets = datasets(folder.parent / "clips", CREMA_D={"long": {2, 5}}, CAER={"bad": {3}})
    train(config(folder, bundle, batch=batch, accumulate=2, workers=1, max_bad_share=0.5), sets, Reader())
