"""The tokenizer of the demo: byte-level BPE, trained on prompts and answers."""

import json
import random
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from ...data import open_dataset
from ...generation.stop import STOP
from ...generation.tokenizer import PLACEHOLDERS
from ...prompts import Templates
from ...tasks import TASKS

_SETS = ("manifest", "avamerg", "mercaptionplus", "merr_fine", "mintrec", "caer_ferv39k", "crema_d")


def sentences(corpus: Path) -> list[str]:
    """Subtitles, questions and answers of the training part of a corpus, and the wording of every prompt."""
    rng, lines = random.Random(0), []
    for name in _SETS:
        dataset = open_dataset(name, corpus)
        for i in range(len(dataset)):
            for kind in dataset.kinds:
                sample = dataset.sample(i, kind, rng)
                lines += [sample.subtitle or "", sample.answer]
                if i < 100:
                    lines.append(sample.question)
    wording = [*Templates().pieces.values(), *(task.ask() for task in TASKS.values())]
    return lines + wording * 100


def make_tokenizer(folder: Path, size: int, lines: list[str]) -> None:
    """Train a tokenizer of `size` tokens into a folder. Any text has ids; `###` is always one token."""
    tokenizer = RustTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", *PLACEHOLDERS.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_tokens([AddedToken(STOP, special=False, normalized=False)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    names = {"bos_token": special[0], "eos_token": special[1], "pad_token": special[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=1) + "\n")
