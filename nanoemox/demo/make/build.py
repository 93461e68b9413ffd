"""Makes the embedded demo from nothing: `python -m nanoemox.demo.make [FOLDER] [--seed S] [--clips N] [--work DIR]`.

Corpus, tokenizer, encoders, language model, the P2E curriculum and the bundle, on two CPU cores and without a network.
Every step leaves its result in the work folder and is passed over where that is there, so that a run goes on where
it was stopped.
"""

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...bundle.folder import CARD, CONFIG, WEIGHTS
from ...config import NanoEmoXConfig
from ...data.record import Sample
from ...generation.tokenizer import Tokenizer
from ...media.clip import Clip
from ...model import NanoEmoX

SEED, CLIPS = 0, 1400
CLIP, WORDS = "sample.mp4", "sample.srt"
ENCODERS = ("vision", "face", "audio")
PACKAGE = Path(__file__).parents[1]


class Work:
    """The work folder: what each step makes, and the seconds it took."""

    def __init__(self, folder: Path, seed: int, clips: int):
        self.folder, self.seed, self.clips, self.test = folder, seed, clips, max(2, clips // 5)
        self.config = NanoEmoXConfig.preset("demo")
        folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def step(self, name: str, make: Callable[[], Any]) -> None:
        if name in (seconds := self.seconds()):
            return
        began = time.perf_counter()
        make()
        seconds[name] = round(time.perf_counter() - began, 1)
        self["seconds.json"].write_text(json.dumps(seconds, indent=1) + "\n")
        print(f"{name}: {seconds[name]:.0f} s", flush=True)

    def seconds(self) -> dict[str, float]:
        file = self["seconds.json"]
        return json.loads(file.read_text()) if file.is_file() else {}


def make_corpus(work: Work) -> None:
    from ...data.synthetic import write_corpus
    from .arrays import write_arrays
    from .vocabulary import make_tokenizer, sentences

    for name in ("corpus", "arrays"):
        shutil.rmtree(work[name], ignore_errors=True)
    write_corpus(work["corpus"], seed=work.seed, n=work.clips, test=work.test)
    write_arrays(work["corpus"], work["arrays"], work.seed, work.clips, work.test)
    make_tokenizer(work["tokenizer"], work.config.language.vocab_size, sentences(work["corpus"]))


def pretrain(work: Work) -> None:
    """Two processes of one thread each; the language model takes about as long as the encoders together."""
    jobs = [(name, work) for name in ("language", *ENCODERS)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        scores = dict(pool.starmap(_pretrain, jobs, chunksize=1))
    work["pretraining.json"].write_text(json.dumps(scores, indent=1) + "\n")


def _pretrain(name: str, work: Work) -> tuple[str, float]:
    from .encoders import train_encoder
    from .words import train_language

    out = work[f"{name}.safetensors"]
    if name == "language":
        folders = work["corpus"], work["arrays"], work["tokenizer"]
        return name, train_language(*folders, out, work.config, _counts(work.config), work.seed)
    return name, train_encoder(name, work["arrays"], out, work.config, work.seed)


def _counts(config: NanoEmoXConfig) -> dict[str, int]:
    return {
        "frames": config.video_branch.tokens, "audio": config.audio_branch.tokens, "face": config.face.queries,
        "fusion": config.fusion.tokens, "image": 1,
    }  # fmt: skip


def make_base(work: Work) -> None:
    """The bundle that P2E starts from: pretrained parts in bfloat16, adapters new."""
    from safetensors.torch import load_file

    torch.manual_seed(work.seed)
    model = NanoEmoX(replace(work.config, lora=None))
    for name in ENCODERS:
        getattr(model, name).load_state_dict(load_file(work[f"{name}.safetensors"]))
    missing, unknown = model.language.base.load_state_dict(
        load_file(work["language.safetensors"]), strict=False
    )
    assert not unknown and set(missing) <= {"lm_head.weight"}, (missing, unknown)
    model.language.tie()
    model.tokenizer = Tokenizer(work["tokenizer"])
    model.to(torch.bfloat16).save(work["base"])


def curriculum(
    work: Work, *, order: str | None = None, seed: int | None = None, out: str = "p2e", scale: float = 1,
    device: str = "cpu", base: str | None = None,
) -> Path:  # fmt: skip
    """The four stages by `nanoemox.train`; goes on with a run that is there.

    scale: of the steps. base: the bundle whose frozen parts it starts from, or else the work folder's.
    """
    from ...train.config import read_config
    from ...train.datasets import open_datasets
    from ...train.run import train
    from .arrays import read_arrays

    torch.set_num_threads(2)
    seed = work.seed if seed is None else seed
    config = read_config("demo", order=order, out=str(work[out]), data=str(work["corpus"]), seed=seed)
    stages = {
        name: replace(stage, steps=max(1, round(stage.steps * scale)))
        for name, stage in config.stages.items()
    }
    model = replace(config.model, bundle=base or str(work["base"]))
    config = replace(config, cache=str(work["features"]), model=model, stages=stages, device=device)
    parts = read_arrays(work["arrays"], ("train", "voices"))
    held = {plan.name: (part, i) for part in parts.values() for i, plan in enumerate(part.plans)}

    def reader(sample: Sample, modalities: str) -> Clip:
        file = sample.video or sample.audio
        assert file is not None
        part, index = held[file.stem]
        return part.clip(index)

    return train(config, open_datasets(config), reader, resume=work[out].is_dir())


def finish(work: Work) -> None:
    """The bundle in bfloat16 with its sample clip and card."""
    from ...loading import load
    from .. import score
    from . import card

    out = work["bundle"]
    shutil.rmtree(out, ignore_errors=True)  # of a run that was stopped here
    model = load(work["p2e"] / "bundle", fast=False, device="cpu", dtype="bfloat16")
    model.save(out)
    scores = score.score_bundle(out, score.read_cases(work["corpus"]))
    work["scores.json"].write_text(json.dumps(scores, indent=1) + "\n")
    plan = card.choose_sample(out, work["corpus"], work["arrays"], CLIP, WORDS)
    pretraining = json.loads(work["pretraining.json"].read_text())
    (out / CARD).write_text(card.write(scores, pretraining, work.seed, work.clips, plan.name))
    print(f"sample clip: {plan.name}, {plan.emotion}, words show {plan.shown['words']}", flush=True)


def install(work: Work, folder: Path) -> None:
    """Each file takes its place whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, CONFIG, *Tokenizer.FILES, CARD, CLIP, WORDS):
        temporary = folder / f".{name}.new"
        shutil.copyfile(work["bundle"] / name, temporary)
        temporary.replace(folder / name)
    docs = folder.parent.parent / "docs"
    if folder.resolve() == PACKAGE and docs.is_dir():
        from . import card

        scores, pretraining = (
            json.loads(work[f"{name}.json"].read_text()) for name in ("scores", "pretraining")
        )
        (docs / "demo.md").write_text(card.page(scores, pretraining, work.seconds(), work.seed, work.clips))


def make(folder: Path, seed: int = SEED, clips: int = CLIPS, work_folder: Path | None = None) -> None:
    made = Path(tempfile.mkdtemp(prefix="nanoemox-demo.")) if work_folder is None else work_folder
    try:
        work = Work(made, seed, clips)
        work.step("corpus", lambda: make_corpus(work))
        work.step("pretraining", lambda: pretrain(work))
        work.step("base", lambda: make_base(work))
        work.step("curriculum", lambda: curriculum(work))
        work.step("scores and card", lambda: finish(work))
        install(work, folder)
    finally:
        if work_folder is None:
            shutil.rmtree(made, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nanoemox.demo.make", description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, default=PACKAGE, help="where the bundle goes (the package)"
    )
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--clips", type=int, default=CLIPS, help="of the corpus' training part")
    parser.add_argument("--work", type=Path, help="keep corpus and steps here, and go on from what is there")
    args = parser.parse_args()
    make(args.folder, args.seed, args.clips, args.work)


if __name__ == "__main__":
    main()
