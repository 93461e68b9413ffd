"""Stand-in pretraining of the small language model: the corpus' questions and answers, as text alone.

Where a prompt would show the tokens of a stream, it shows words of what the stream tells instead, so that the language
model learns to weigh face, voice and words, and to answer in the words of the tasks, before any encoder is attached to
it. Words are swapped, blurred and left out at random: what a stream tells later is never that plain.
"""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from ...train.collate import collate
from .arrays import read_arrays
from .encoders import fit

STEPS, BATCH, RATE = 1300, 32, 2e-3
_WHOLE = "multiface_audio_face_frame_text"
_PARTLY = ("audio_text", "audioonly", "face_frame_text", "face_frame", "textonly")
# Weight of a data set, share of its samples that lack a stream.
_SETS = {
    "manifest": (8.0, 0.3), "avamerg": (2.0, 0.1), "mercaptionplus": (1.5, 0.1), "merr_fine": (0.5, 0.1),
    "mintrec": (0.5, 0.2), "mintrec2": (0.5, 0.2), "caer_ferv39k": (1.0, 1.0), "m3ed": (0.7, 1.0),
    "crema_d": (0.7, 1.0),
}  # fmt: skip
_ONLY = {"caer_ferv39k": "face_frame", "m3ed": "audio_text", "crema_d": "audio_text"}


@dataclass(frozen=True)
class Item:
    """A prompt with words in the streams' places, and its answer. `shown`: the positions of those places."""

    prompt: list[int]
    target: list[int]
    shown: list[int]
    task: str


class Items:
    """Draws questions of the corpus' data sets, worded as training and inference word them."""

    def __init__(
        self, corpus: Path, plans: Sequence[Plan], tokenizer: Tokenizer, counts: dict[str, int], test: bool
    ):
        self.tokenizer, self.counts, self.templates = tokenizer, counts, Templates()
        self.plans = {plan.name: plan for plan in plans}
        names = ["manifest"] if test else list(_SETS)
        self.sets: dict[str, Dataset] = {
            name: open_dataset(name, corpus, split="test" if test else "train") for name in names
        }
        spell = tokenizer.encode
        self.names = {emotion: spell(f" {emotion}") for emotion in EMOTIONS}
        self.phrases = {
            kind: {emotion: spell(f" {emotion} {text}") for emotion, text in table.items()}
            for kind, table in (("audio", texts.VOICE), ("frames", texts.FACE), ("face", texts.FACE))
        }
        self.plain = sorted(set(range(len(tokenizer))) - set(tokenizer.placeholder_ids.values()))

    def draw(self, rng: random.Random) -> Item:
        name = rng.choices(list(self.sets), [_SETS[held][0] for held in self.sets])[0]
        dataset = self.sets[name]
        kind = rng.choice(dataset.kinds)
        return self.item(name, dataset.sample(rng.randrange(len(dataset)), kind, rng), rng)

    def item(self, name: str, sample: Sample, rng: random.Random, noise: float = 1.0) -> Item:
        file = sample.video or sample.audio
        assert file is not None
        plan = self.plans[file.stem]
        chosen = _ONLY.get(name, _WHOLE)
        if name not in _ONLY and rng.random() < _SETS[name][1] * (noise > 0):
            chosen = rng.choice(_PARTLY)
        if sample.history and not MODALITY_SETS[chosen].subtitle:
            chosen = _WHOLE
        segments = prompts.build(
            chosen,
            subtitle=sample.subtitle,
            question=sample.question,
            templates=self.templates,
            history=sample.history,
        )
        ids: list[int] = []
        shown: list[int] = []
        for segment in segments:
            if isinstance(segment, Stream):
                shown += range(len(ids), len(ids) + self.counts[segment.kind])
                ids += self.stand_in(segment.kind, plan, rng, noise)
            else:
                ids += self.tokenizer.encode(segment)
        return Item(ids, self.tokenizer.encode(sample.answer + STOP), shown, sample.task)

    def stand_in(self, kind: str, plan: Plan, rng: random.Random, noise: float) -> list[int]:
        """Words of what a stream tells, as many ids as it has tokens."""
        count = self.counts[kind]
        seen = plan.shown["voice" if kind == "audio" else "face"]
        if kind == "fusion":
            seen = rng.choice((plan.shown["voice"], plan.shown["face"]))
        told = self.names[seen]
        if kind in self.phrases and rng.random() < 0.6:
            told = self.phrases[kind][seen]
        start = rng.randrange(len(told))
        ids = [told[(start + i) % len(told)] for i in range(count)]
        if noise and rng.random() < 0.9:
            swapped = 1.0 if rng.random() < 0.05 else rng.random() * 0.6
            if rng.random() < 0.3:  # doubts in favour of another emotion
                other = self.names[rng.choice(EMOTIONS)]
                ids = [rng.choice(other) if rng.random() < swapped else i for i in ids]
            else:
                ids = [rng.choice(self.plain) if rng.random() < swapped else i for i in ids]
        return ids

    def batches(self, rng: random.Random, size: int) -> Iterator[list[Item]]:
        """Without end; items of about the same length go together."""
        while True:
            drawn = sorted(
                (self.draw(rng) for _ in range(16 * size)), key=lambda i: len(i.prompt) + len(i.target)
            )
            cut = [drawn[low : low + size] for low in range(0, len(drawn), size)]
            rng.shuffle(cut)
            yield from cut


def _loss(
    model: LanguageModel, items: Sequence[Item], tokenizer: Tokenizer, blur: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy over the answers; for every answer token the id that is likeliest, and the labels [B,L-1]."""
    ids, labels, mask = collate(
        [(item.prompt, item.target) for item in items],
        bos=tokenizer.bos_id,
        eos=tokenizer.eos_id,
        pad=tokenizer.eos_id,
    )
    embeds = model.embed(ids)
    if blur:
        rows = torch.cat([torch.full((len(item.shown),), i) for i, item in enumerate(items)])
        places = torch.cat([torch.tensor(item.shown, dtype=torch.long) + 1 for item in items])
        width = embeds.detach().std()
        noise = torch.zeros_like(embeds)
        noise[rows, places] = torch.randn(len(rows), embeds.shape[-1]) * width * blur
        embeds = embeds + noise
    hidden = model.base.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
    wanted = labels[:, 1:]
    chosen = wanted != -100
    logits = model.base.lm_head(hidden[:, :-1][chosen]).float()
    told = torch.full_like(wanted, -100)
    told[chosen] = logits.detach().argmax(-1)
    return F.cross_entropy(logits, wanted[chosen]), told, wanted


def train_language(
    corpus: Path, arrays: Path, tokenizer_folder: Path, out: Path, config: NanoEmoXConfig, counts: dict[str, int],
    seed: int,
) -> float:  # fmt: skip
    """Trains the language model into a safetensors file; returns the share of whole answers that it gets right."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = Tokenizer(tokenizer_folder)
    parts = read_arrays(arrays)
    items = Items(corpus, [*parts["train"].plans, *parts["voices"].plans], tokenizer, counts, test=False)
    model = LanguageModel(config.language)
    stream = items.batches(random.Random(seed), BATCH)

    def loss_of(step: int) -> Tensor:
        return _loss(model, next(stream), tokenizer, blur=0.7)[0]

    fit(list(model.parameters()), STEPS, RATE, loss_of, lambda text: print(f"language: {text}", flush=True))
    weights = dict(model.base.named_parameters())
    save_file({name: value.detach().contiguous().clone() for name, value in weights.items()}, out)
    return _whole_answers(
        model.eval(), Items(corpus, parts["test"].plans, tokenizer, counts, test=True), tokenizer
    )


@torch.no_grad()
def _whole_answers(model: LanguageModel, items: Items, tokenizer: Tokenizer) -> float:
    """Teacher-forced, of the test people's msa, mer and mir: every token of the answer right."""
    rng, right, began = random.Random(0), [], time.perf_counter()
    held = items.sets["manifest"]
    for task in ("msa", "mer", "ov-mer", "mir"):
        hits = []
        asked = [items.item("manifest", held.sample(i, task, rng), rng, noise=0) for i in range(len(held))]
        for low in range(0, len(asked), BATCH):
            _, told, wanted = _loss(model, asked[low : low + BATCH], tokenizer, blur=0)
            hits += ((told == wanted) | (wanted == tokenizer.eos_id)).all(1).tolist()
        print(f"language: {task} {sum(hits) / len(hits):.3f}", flush=True)
        right += hits
    print(f"language: test {time.perf_counter() - began:.0f} s", flush=True)
    return sum(right) / len(right)
