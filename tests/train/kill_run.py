"""python kill_run.py FOLDER BUNDLE SEED: a run that is killed once in each stage, and one that is not.

The moments are random. Children are forked from one process that has everything imported. Prints, as JSON,
where each was killed.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from tiny_training import Reader, config, datasets

from nanoemox.train.run import train
from nanoemox.train.stages import P2E


class Slow(Reader):
    """So that there are moments between the steps."""

    def __call__(self, sample, modalities):
        time.sleep(0.02)
        return super().__call__(sample, modalities)


def start(run_config, folder, resume, reader):
    child = os.fork()
    if child == 0:
        try:
            train(run_config, datasets(folder), reader, resume=resume)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return child


def lines(file):
    return file.read_bytes().count(b"\n") if file.exists() else 0


def main(folder, bundle, seed):
    torch.set_num_threads(1)
    made = config(folder, bundle, steps=4, epochs=2, cache=str(folder / "cache"), checkpoint_every=3)
    whole = config(folder, bundle, steps=4, epochs=2, checkpoint_every=3, out=str(folder / "whole"))
    assert os.waitpid(start(whole, folder, False, Reader()), 0)[1] == 0
    rng, killed, resume = random.Random(seed), {}, False
    for stage in P2E:
        log, at = folder / "out" / stage / "log.jsonl", rng.randrange(1, 8)
        child = start(made, folder, resume, Slow())
        deadline = time.monotonic() + 60
        while lines(log) < at and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.03)  # within a step, a checkpoint or a shard
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        killed[stage] = {"lines": lines(log), "killed": os.WIFSIGNALED(status)}
        resume = True
    assert os.waitpid(start(made, folder, True, Reader()), 0)[1] == 0
    print(json.dumps(killed))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
