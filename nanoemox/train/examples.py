"""From a draw to what the model is given: tokens with their labels, and features or media (architecture section 11)."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import prompts
from ..data.record import Dataset, Sample
from ..errors import MediaError
from ..generation.stop import STOP
from ..model import NanoEmoX
from .collate import collate
from .features import Entry, Features, streams
from .sampler import Draw
from .stages import Stage

TRIES = 10
Reader = Callable[[Sample, str], Any]  # (sample, modality set) -> Clip


@dataclass
class Rejected:
    """A sample that another one replaced. `long`: too many tokens; else its media or annotation cannot be read."""

    dataset: str
    sample: str
    reason: str
    long: bool = False


class Unusable(MediaError):
    """Ten samples one after the other that cannot be used."""

    def __init__(self, dataset: str, rejected: list[Rejected]):
        last = f"{rejected[-1].sample} ({rejected[-1].reason})"
        super().__init__(
            f"{dataset}: {TRIES} samples one after the other cannot be used; the last was {last}"
        )
        self.rejected = rejected


@dataclass
class Example:
    """One sample that can be used. `media`: what of it has to be encoded still, by stream."""

    prompt: list[int]
    target: list[int]
    features: Entry
    media: dict[str, Any]
    keys: dict[str, str]
    rejected: list[Rejected] = field(default_factory=list)


@dataclass
class Batch:
    """ids, labels, mask [B,L]; features name -> [B,T,D]."""

    modalities: str
    ids: Tensor
    labels: Tensor
    mask: Tensor
    features: dict[str, Tensor]

    @property
    def tokens(self) -> int:
        """Label tokens: the loss is their sum divided by the count over all processes."""
        return int((self.labels[:, 1:] != -100).sum())


class Samples:
    """Builds a stage's samples. `fetch` may run in any thread, `batch` runs the encoders."""

    def __init__(
        self,
        stage: Stage,
        datasets: Sequence[Dataset],
        modalities: Sequence[str],
        model: NanoEmoX,
        features: Features,
        reader: Reader,
        *,
        kept: Sequence[Sequence[int]],
        max_tokens: int = 1024,
    ):
        """`datasets`, `modalities`, `kept`: of each source, the set, its modality set and the records in use."""
        assert model.tokenizer is not None
        self.stage, self.datasets, self.modalities, self.kept = stage, datasets, modalities, kept
        self.tokenizer, self.templates, self.counts = model.tokenizer, model.templates, model.token_counts
        self.features, self.reader, self.max_tokens = features, reader, max_tokens

    def tokens(self, sample: Sample, modalities: str) -> tuple[list[int], list[int]]:
        """(prompt, target) ids, tokenised apart, without bos and eos."""
        segments = prompts.build(
            modalities,
            subtitle=sample.subtitle,
            question=sample.question,
            templates=self.templates,
            history=sample.history,
        )
        prompt = prompts.tokenize(segments, self.tokenizer, self.counts)
        return prompt, self.tokenizer.encode(sample.answer + STOP)

    def fetch(self, draw: Draw) -> Example:
        """The drawn sample, or a random other one of its set if it is too long or cannot be read.

        Raises Unusable after ten tries.
        """
        dataset, modalities = self.datasets[draw.source], self.modalities[draw.source]
        name = self.stage.data[draw.source].set
        rng, index = random.Random(draw.seed), draw.index
        rejected: list[Rejected] = []
        for _ in range(TRIES):
            shown = f"record {index}"
            try:
                sample = dataset.sample(index, draw.kind, rng)
                shown = sample.name
                prompt, target = self.tokens(sample, modalities)
                if len(prompt) + len(target) <= self.max_tokens:
                    return Example(prompt, target, *self._media(sample, modalities), rejected)
                length = f"{len(prompt)} + {len(target)} tokens, {self.max_tokens} are allowed"
                rejected.append(Rejected(name, shown, length, long=True))
            except (ValueError, OSError) as error:  # MediaError is a ValueError
                rejected.append(Rejected(name, shown, " ".join(str(error).split())))
            index = rng.choice(self.kept[draw.source])
        raise Unusable(name, rejected)

    def _media(self, sample: Sample, modalities: str) -> tuple[Entry, dict[str, Any], dict[str, str]]:
        found: Entry = {}
        keys = {stream: self.features.key(sample, stream) for stream in streams(modalities)}
        missing = []
        for stream, key in keys.items():
            if (entry := self.features.get(key, stream)) is None:
                missing.append(stream)
            else:
                found |= entry
        if not missing:
            return found, {}, keys
        clip = self.reader(sample, modalities)
        media = {stream: getattr(clip, stream) for stream in missing}
        if absent := [stream for stream, array in media.items() if array is None]:
            raise MediaError(f"{sample.name}: no {absent[0]} in its media, which {modalities} needs")
        return found, media, keys

    def batch(self, examples: Sequence[Example], source: int) -> Batch:
        """Encodes what has to be, pads, stacks."""
        features = []
        for example in examples:
            entry = dict(example.features)
            for stream, array in example.media.items():
                entry |= self.features.encode(example.keys[stream], stream, array)
            features.append(entry)
        ids, labels, mask = collate(
            [(example.prompt, example.target) for example in examples],
            bos=self.tokenizer.bos_id,
            eos=self.tokenizer.eos_id,
            pad=self.tokenizer.eos_id,  # officially the pad token, so that the last eos is hidden as well
        )
        stacked = {name: torch.stack([entry[name] for entry in features]) for name in features[0]}
        return Batch(self.modalities[source], ids, labels, mask, stacked)
