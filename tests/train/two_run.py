"""torchrun ... two_run.py FOLDER BUNDLE [fsdp [resume]]: the tiny curriculum without dropout, on the CPU.

Once with copies of the model (not with fsdp) and once with shards of it: one start for both.
"""

import sys
from pathlib import Path
from unittest.mock import patch

import torch
from tiny_training import Reader, config, datasets
from torch.distributed.tensor import DTensor

from nanoemox.train import loop
from nanoemox.train import run as running


def shard_on_the_cpu():
    """accelerate shards on accelerators alone; told that this is one, it does here what it does there."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState.is_fsdp2 = Accelerator.is_fsdp2 = property(lambda _: True)
    original, train = running._accelerator, loop.StageRun._train

    def accelerator(run_config, stages):
        made = original(run_config, stages)
        AcceleratorState._shared_state["fsdp_plugin"] = running.sharding()
        return made

    def checked(stage):
        assert all(isinstance(parameter, DTensor) for parameter in stage.parameters.values())
        return train(stage)

    running._accelerator, loop.StageRun._train = accelerator, checked


def setting(folder, bundle, batch, sharded=False):
    sets = datasets(folder.parent / "clips", CREMA_D={"long": {2, 5}}, CAER={"bad": {3}})
    run_config = config(folder, bundle, batch=batch, accumulate=2, workers=1, max_bad_share=0.5, fsdp=sharded)
    return run_config, sets


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, bundle = Path(sys.argv[1]), Path(sys.argv[2])
    running.draw_curves = lambda *_: None
    if "fsdp" not in sys.argv:
        with patch("accelerate.Accelerator.end_training"):  # the processes are needed once more
            running.train(*setting(folder / "two", bundle, 2), Reader())
    shard_on_the_cpu()
    running.train(*setting(folder / "sharded", bundle, 2, True), Reader(), resume="resume" in sys.argv)
