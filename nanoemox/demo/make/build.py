"""Makes the embedded demo: `python -m nanoemox.demo.make [FOLDER] [--seed S] [--clips N] [--work DIR]`.

The steps are corpus and tokenizer, pretraining of encoders and language model, the P2E curriculum, and the
bundle, on two CPU cores and without a network. Every step writes its result to the work folder and is skipped
if it is done, so that a run can be resumed.
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
from ...model import NanoEmoX, reference_language

SEED, CLIPS = 0, 1400
CLIP, WORDS = "sample.mp4", "sample.srt"
ENCODERS = ("vision", "face", "audio")
PACKAGE = Path(__file__).parents[1]


class Work:
    """The work folder: the results of the steps, and the seconds that each took.

    Args:
        folder: is created.
        seed: of corpus and training.
        clips: training clips of the corpus; a fifth as many are test clips.
    """

    def __init__(self, folder: Path, seed: int, clips: int):
        self.folder, self.seed, self.clips, self.test = folder, seed, clips, max(2, clips // 5)
        self.config = NanoEmoXConfig.preset("demo")
        folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, name: str) -> Path:
        """A file or folder in the work folder."""
        return self.folder / name

    def step(self, name: str, make: Callable[[], Any]) -> None:
        """Run a step unless it is done."""
        seconds = self.seconds()
        if name in seconds:
            return
        began = time.perf_counter()
        make()
        seconds[name] = round(time.perf_counter() - began, 1)
        self["seconds.json"].write_text(json.dumps(seconds, indent=1) + "\n")
        print(f"{name}: {seconds[name]:.0f} s", flush=True)

    def seconds(self) -> dict[str, float]:
        """Step -> seconds, of the steps that are done."""
        file = self["seconds.json"]
        return json.loads(file.read_text()) if file.is_file() else {}


def make_corpus(work: Work) -> None:
    """The synthetic corpus, its decoded arrays and the tokenizer."""
    from ...data.synthetic import write_corpus
    from .arrays import write_arrays
    from .vocabulary import make_tokenizer, sentences

    for name in ("corpus", "arrays"):
        shutil.rmtree(work[name], ignore_errors=True)
    write_corpus(work["corpus"], seed=work.seed, n=work.clips, test=work.test)
    write_arrays(work["corpus"], work["arrays"], work.seed, work.clips, work.test)
    make_tokenizer(work["tokenizer"], work.config.language.vocab_size, sentences(work["corpus"]))


def pretrain(work: Work) -> None:
    """Pretrain encoders and language model in two processes of one thread each.

    The language model takes about as long as the three encoders together.
    """
    jobs = [(name, work) for name in ("language", *ENCODERS)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        scores = dict(pool.starmap(_pretrain, jobs, chunksize=1))
    work["pretraining.json"].write_text(json.dumps(scores, indent=1) + "\n")


def _pretrain(name: str, work: Work) -> tuple[str, float]:
    """Pretrain one part; returns its name and score."""
    from .encoders import train_encoder
    from .words import train_language

    out = work[f"{name}.safetensors"]
    if name == "language":
        folders = work["corpus"], work["arrays"], work["tokenizer"]
        return name, train_language(*folders, out, work.config, _token_counts(work.config), work.seed)
    return name, train_encoder(name, work["arrays"], out, work.config, work.seed)


def _token_counts(config: NanoEmoXConfig) -> dict[str, int]:
    """Stream -> number of tokens in a prompt."""
    return {
        "frames": config.video_branch.tokens,
        "audio": config.audio_branch.tokens,
        "face": config.face.queries,
        "fusion": config.fusion.tokens,
        "image": 1,
    }


def make_base(work: Work) -> None:
    """The bundle that the curriculum starts from: pretrained parts in bfloat16, new adapters."""
    from safetensors.torch import load_file

    torch.manual_seed(work.seed)
    model = NanoEmoX(replace(work.config, lora=None))
    for name in ENCODERS:
        getattr(model, name).load_state_dict(load_file(work[f"{name}.safetensors"]))
    language = reference_language(model)
    missing, unknown = language.base.load_state_dict(load_file(work["language.safetensors"]), strict=False)
    assert not unknown and set(missing) <= {"lm_head.weight"}, (missing, unknown)
    language.tie()
    model.tokenizer = Tokenizer(work["tokenizer"])
    model.to(torch.bfloat16).save(work["base"])


def curriculum(
    work: Work,
    *,
    order: str | None = None,
    seed: int | None = None,
    out: str = "p2e",
    scale: float = 1,
    device: str = "cpu",
    base: str | None = None,
) -> Path:
    """Train the stages of configs/demo.yaml; a run that exists is resumed.

    Args:
        work: the work folder, with corpus and arrays.
        order: order of the stages, by default the config's.
        seed: by default the work folder's.
        out: folder of the run, within the work folder.
        scale: factor of the steps of every stage.
        device: "cpu" or "cuda".
        base: bundle that provides the frozen parts, by default the one of `make_base`.

    Returns:
        The trained bundle.
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
    decoded = {plan.name: (part, i) for part in parts.values() for i, plan in enumerate(part.plans)}

    def reader(sample: Sample, modalities: str) -> Clip:
        file = sample.video or sample.audio
        assert file is not None
        part, index = decoded[file.stem]
        return part.clip(index)

    return train(config, open_datasets(config), reader, resume=work[out].is_dir())


def finish(work: Work) -> None:
    """The bundle in bfloat16, with scores, sample clip and model card."""
    from ...loading import load
    from .. import score
    from . import card

    out = work["bundle"]
    shutil.rmtree(out, ignore_errors=True)  # of a run that was stopped in this step
    model = load(work["p2e"] / "bundle", fast=False, device="cpu", dtype="bfloat16")
    model.save(out)
    scores = score.score_bundle(out, score.read_cases(work["corpus"]))
    work["scores.json"].write_text(json.dumps(scores, indent=1) + "\n")
    plan = card.choose_sample(out, work["corpus"], work["arrays"], CLIP, WORDS)
    pretraining = json.loads(work["pretraining.json"].read_text())
    (out / CARD).write_text(card.write(scores, pretraining, work.seed, work.clips, plan.name))
    print(f"sample clip: {plan.name}, {plan.emotion}, words show {plan.shown['words']}", flush=True)


def install(work: Work, folder: Path) -> None:
    """Copy the bundle into a folder, file by file by way of a temporary name.

    For the package, docs/demo.md is written too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, CONFIG, *Tokenizer.FILES, CARD, CLIP, WORDS):
        temporary = folder / f".{name}.new"
        shutil.copyfile(work["bundle"] / name, temporary)
        temporary.replace(folder / name)
    docs = folder.parent.parent / "docs"
    if folder.resolve() == PACKAGE and docs.is_dir():
        from . import card

        scores = json.loads(work["scores.json"].read_text())
        pretraining = json.loads(work["pretraining.json"].read_text())
        (docs / "demo.md").write_text(card.page(scores, pretraining, work.seconds(), work.seed, work.clips))


def make(folder: Path, seed: int = SEED, clips: int = CLIPS, work_folder: Path | None = None) -> None:
    """Make the demo.

    Args:
        folder: gets the bundle.
        seed, clips: see `Work`.
        work_folder: keeps the results of the steps; by default a temporary folder, which is deleted.
    """
    work_path = Path(tempfile.mkdtemp(prefix="nanoemox-demo.")) if work_folder is None else work_folder
    try:
        work = Work(work_path, seed, clips)
        work.step("corpus", lambda: make_corpus(work))
        work.step("pretraining", lambda: pretrain(work))
        work.step("base", lambda: make_base(work))
        work.step("curriculum", lambda: curriculum(work))
        work.step("scores and card", lambda: finish(work))
        install(work, folder)
    finally:
        if work_folder is None:
            shutil.rmtree(work_path, ignore_errors=True)


def main() -> None:
    """The command line."""
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
