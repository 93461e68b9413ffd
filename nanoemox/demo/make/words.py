"""Stand-in pretraining of the small language model on the questions and answers of the corpus, as text alone.

Where a prompt has the tokens of a stream, it gets words for what the stream shows instead. So the language
model learns to weigh face, voice and words, and to answer as the tasks require, before an encoder is attached
to it. Words are exchanged, blurred and left out at random, since the tokens of a stream are never that clear.
"""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ... import prompts
from ...config import NanoEmoXConfig
from ...data import open_dataset
from ...data.record import Dataset, Sample
from ...data.synthetic import texts
from ...data.synthetic.plan import Plan
from ...generation.stop import STOP
from ...generation.tokenizer import Tokenizer
from ...modules.language import LanguageModel
from ...prompts import MODALITY_SETS, Stream, Templates
from ...tasks import EMOTIONS
from ...train.collate import IGNORED, collate
from .arrays import read_arrays
from .fit import fit

STEPS, BATCH, RATE = 1300, 32, 2e-3
_ALL_STREAMS = "multiface_audio_face_frame_text"
_SOME_STREAMS = ("audio_text", "audioonly", "face_frame_text", "face_frame", "textonly")
# Data set -> weight, and share of the samples that lack a stream.
_SETS = {
    "manifest": (8.0, 0.3), "avamerg": (2.0, 0.1), "mercaptionplus": (1.5, 0.1), "merr_fine": (0.5, 0.1),
    "mintrec": (0.5, 0.2), "mintrec2": (0.5, 0.2), "caer_ferv39k": (1.0, 1.0), "m3ed": (0.7, 1.0),
    "crema_d": (0.7, 1.0),
}  # fmt: skip
# Data sets with a fixed modality set.
_ONLY = {"caer_ferv39k": "face_frame", "m3ed": "audio_text", "crema_d": "audio_text"}


@dataclass(frozen=True)
class Item:
    """A prompt with words in place of the streams' tokens, and its answer.

    Attributes:
        prompt, target: ids.
        stream_positions: positions of the words that stand for streams.
    """

    prompt: list[int]
    target: list[int]
    stream_positions: list[int]


class Items:
    """Draws questions of the corpus, worded as in training and inference.

    Args:
        corpus: the corpus.
        plans: its clips.
        tokenizer: the tokenizer of the demo.
        counts: stream -> number of tokens.
        test: use the test manifest instead of the training sets.
    """

    def __init__(
        self, corpus: Path, plans: Sequence[Plan], tokenizer: Tokenizer, counts: dict[str, int], test: bool
    ):
        self.tokenizer, self.counts, self.templates = tokenizer, counts, Templates()
        self.plans = {plan.name: plan for plan in plans}
        names = ["manifest"] if test else list(_SETS)
        split = "test" if test else "train"
        self.sets: dict[str, Dataset] = {name: open_dataset(name, corpus, split=split) for name in names}
        encode = tokenizer.encode
        self.names = {emotion: encode(f" {emotion}") for emotion in EMOTIONS}
        self.phrases = {
            kind: {emotion: encode(f" {emotion} {text}") for emotion, text in table.items()}
            for kind, table in (("audio", texts.VOICE), ("frames", texts.FACE), ("face", texts.FACE))
        }
        self.text_ids = sorted(set(range(len(tokenizer))) - set(tokenizer.placeholder_ids.values()))

    def draw(self, rng: random.Random) -> Item:
        """A random question."""
        weights = [_SETS[name][0] for name in self.sets]
        name = rng.choices(list(self.sets), weights)[0]
        dataset = self.sets[name]
        kind = rng.choice(dataset.kinds)
        sample = dataset.sample(rng.randrange(len(dataset)), kind, rng)
        return self.item(name, sample, rng)

    def item(self, name: str, sample: Sample, rng: random.Random, noise: float = 1.0) -> Item:
        """The item of a sample of the data set `name`. Without noise, all streams are present and clear."""
        file = sample.video or sample.audio
        assert file is not None
        plan = self.plans[file.stem]
        modalities = _ONLY.get(name, _ALL_STREAMS)
        if name not in _ONLY and rng.random() < _SETS[name][1] * (noise > 0):
            modalities = rng.choice(_SOME_STREAMS)
        if sample.history and not MODALITY_SETS[modalities].subtitle:
            modalities = _ALL_STREAMS
        segments = prompts.build(
            modalities,
            subtitle=sample.subtitle,
            question=sample.question,
            templates=self.templates,
            history=sample.history,
        )
        ids: list[int] = []
        positions: list[int] = []
        for segment in segments:
            if isinstance(segment, Stream):
                words = self.stand_in(segment.kind, plan, rng, noise)
                positions += range(len(ids), len(ids) + len(words))
                ids += words
            else:
                ids += self.tokenizer.encode(segment)
        return Item(ids, self.tokenizer.encode(sample.answer + STOP), positions)

    def stand_in(self, kind: str, plan: Plan, rng: random.Random, noise: float) -> list[int]:
        """Words for what a stream shows, as many ids as the stream has tokens."""
        emotion = plan.shown["voice" if kind == "audio" else "face"]
        if kind == "fusion":
            emotion = rng.choice((plan.shown["voice"], plan.shown["face"]))
        words = self.names[emotion]
        if kind in self.phrases and rng.random() < 0.6:
            words = self.phrases[kind][emotion]
        start = rng.randrange(len(words))
        ids = [words[(start + i) % len(words)] for i in range(self.counts[kind])]
        if noise and rng.random() < 0.9:
            exchanged = 1.0 if rng.random() < 0.05 else rng.random() * 0.6
            pool = self.text_ids
            if rng.random() < 0.3:  # words of one other emotion
                pool = self.names[rng.choice(EMOTIONS)]
            ids = [rng.choice(pool) if rng.random() < exchanged else i for i in ids]
        return ids

    def batches(self, rng: random.Random, size: int) -> Iterator[list[Item]]:
        """Endless batches of items of about the same length."""
        while True:
            items = [self.draw(rng) for _ in range(16 * size)]
            items.sort(key=lambda item: len(item.prompt) + len(item.target))
            batches = [items[low : low + size] for low in range(0, len(items), size)]
            rng.shuffle(batches)
            yield from batches


def _loss(
    model: LanguageModel, items: Sequence[Item], tokenizer: Tokenizer, blur: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of some items.

    Args:
        model: the language model.
        items: a batch.
        tokenizer: its special ids are used.
        blur: noise that is added to the embeddings of the streams' words, in standard deviations.

    Returns:
        Mean cross-entropy over the answers; the likeliest id of every answer token, and the labels, both
        [B,L-1] and IGNORED elsewhere.
    """
    ids, labels, mask = collate(
        [(item.prompt, item.target) for item in items],
        bos=tokenizer.bos_id,
        eos=tokenizer.eos_id,
        pad=tokenizer.eos_id,
    )
    embeds = model.embed(ids)
    if blur:
        rows = torch.cat([torch.full((len(item.stream_positions),), i) for i, item in enumerate(items)])
        positions = [
            torch.tensor(item.stream_positions, dtype=torch.long) + 1 for item in items
        ]  # behind bos
        deviation = embeds.detach().std()
        noise = torch.zeros_like(embeds)
        noise[rows, torch.cat(positions)] = torch.randn(len(rows), embeds.shape[-1]) * deviation * blur
        embeds = embeds + noise
    base: Any = model.base
    hidden = base.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    has_label = targets != IGNORED
    logits = base.lm_head(hidden[:, :-1][has_label]).float()
    predicted = torch.full_like(targets, IGNORED)
    predicted[has_label] = logits.detach().argmax(-1)
    return F.cross_entropy(logits, targets[has_label]), predicted, targets


def train_language(
    corpus: Path,
    arrays: Path,
    tokenizer_folder: Path,
    out: Path,
    config: NanoEmoXConfig,
    counts: dict[str, int],
    seed: int,
) -> float:
    """Train the language model into a safetensors file.

    Args:
        corpus, arrays, tokenizer_folder: results of `build.make_corpus`.
        out: the file.
        config: sizes of the model.
        counts: stream -> number of tokens.
        seed: decides initial weights and draws.

    Returns:
        Share of the short answers about the test people that are right in every token, 0..1.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = Tokenizer(tokenizer_folder)
    parts = read_arrays(arrays)
    items = Items(corpus, [*parts["train"].plans, *parts["voices"].plans], tokenizer, counts, test=False)
    model = LanguageModel.from_config(config.language)
    stream = items.batches(random.Random(seed), BATCH)

    def loss_of(step: int) -> Tensor:
        return _loss(model, next(stream), tokenizer, blur=0.7)[0]

    fit(list(model.parameters()), STEPS, RATE, loss_of, lambda text: print(f"language: {text}", flush=True))
    weights = dict(model.base.named_parameters())
    save_file({name: value.detach().contiguous().clone() for name, value in weights.items()}, out)
    test_items = Items(corpus, parts["test"].plans, tokenizer, counts, test=True)
    return _answer_accuracy(model.eval(), test_items, tokenizer)


@torch.no_grad()
def _answer_accuracy(model: LanguageModel, items: Items, tokenizer: Tokenizer) -> float:
    """Share of the answers to msa, mer, ov-mer and mir with every token right, under teacher forcing."""
    rng, began = random.Random(0), time.perf_counter()
    dataset = items.sets["manifest"]
    right: list[bool] = []
    for task in ("msa", "mer", "ov-mer", "mir"):
        asked = []
        for i in range(len(dataset)):
            sample = dataset.sample(i, task, rng)
            asked.append(items.item("manifest", sample, rng, noise=0))
        hits: list[bool] = []
        for low in range(0, len(asked), BATCH):
            _, predicted, targets = _loss(model, asked[low : low + BATCH], tokenizer, blur=0)
            is_right = (predicted == targets) | (targets == tokenizer.eos_id)
            hits += is_right.all(1).tolist()
        print(f"language: {task} {sum(hits) / len(hits):.3f}", flush=True)
        right += hits
    print(f"language: test {time.perf_counter() - began:.0f} s", flush=True)
    return sum(right) / len(right)
