"""From a draw to the input of the model: tokens, labels and features (docs/architecture.md section 11)."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .. import prompts
from ..data.record import Dataset, Sample
from ..errors import MediaError
from ..generation.stop import STOP
from ..media.clip import Clip
from ..model import NanoEmoX
from .collate import IGNORED, collate
from .features import Entry, Features, streams
from .sampler import Draw
from .stages import Stage

TRIES = 10
Reader = Callable[[Sample, str], Clip]  # (sample, modality set) -> clip


@dataclass
class Rejected:
    """A sample that was replaced by another one.

    Attributes:
        dataset, sample: names.
        reason: what is wrong with it.
        long: whether it has too many tokens; otherwise its media or annotation cannot be read.
    """

    dataset: str
    sample: str
    reason: str
    long: bool = False


class Unusable(MediaError):
    """TRIES samples in succession that cannot be used."""

    def __init__(self, dataset: str, rejected: list[Rejected]):
        last = f"{rejected[-1].sample} ({rejected[-1].reason})"
        super().__init__(
            f"{dataset}: {TRIES} samples one after the other cannot be used; the last was {last}"
        )
        self.rejected = rejected


@dataclass
class Example:
    """A sample that can be used.

    Attributes:
        prompt, target: ids, without bos and eos.
        features: features from the cache.
        media: stream -> array that still has to be encoded.
        keys: stream -> key in the cache.
        rejected: samples that this one replaces.
    """

    prompt: list[int]
    target: list[int]
    features: Entry
    media: dict[str, np.ndarray]
    keys: dict[str, str]
    rejected: list[Rejected] = field(default_factory=list)


@dataclass
class Batch:
    """Input of the learner: ids, labels, mask [B,L]; features name -> [B,T,D]."""

    modalities: str
    ids: Tensor
    labels: Tensor
    mask: Tensor
    features: dict[str, Tensor]

    @property
    def tokens(self) -> int:
        """Number of label tokens."""
        return int((self.labels[:, 1:] != IGNORED).sum())


class Samples:
    """Builds the samples of a stage. `fetch` may run in any thread; `batch` runs the encoders.

    Args:
        stage: the stage.
        datasets, modalities, indices: of each source, its data set, modality set and used records.
        model: its tokenizer, templates and token counts are used.
        features: encoders and cache.
        reader: reads the media of a sample.
        max_tokens: of prompt and target together; longer samples are replaced.
    """

    def __init__(
        self,
        stage: Stage,
        datasets: Sequence[Dataset],
        modalities: Sequence[str],
        model: NanoEmoX,
        features: Features,
        reader: Reader,
        *,
        indices: Sequence[Sequence[int]],
        max_tokens: int = 1024,
    ):
        assert model.tokenizer is not None
        self.stage = stage
        self.datasets, self.modalities, self.indices = datasets, modalities, indices
        self.tokenizer, self.templates, self.counts = model.tokenizer, model.templates, model.token_counts
        self.features, self.reader, self.max_tokens = features, reader, max_tokens

    def tokens(self, sample: Sample, modalities: str) -> tuple[list[int], list[int]]:
        """(prompt, target) ids, tokenised separately, without bos and eos."""
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
        """The drawn sample, or a random other one of its data set if it is too long or cannot be read.

        Raises Unusable after TRIES samples.
        """
        dataset, modalities = self.datasets[draw.source], self.modalities[draw.source]
        dataset_name = self.stage.data[draw.source].set
        rng, index = random.Random(draw.seed), draw.index
        rejected: list[Rejected] = []
        for _ in range(TRIES):
            name = f"record {index}"
            try:
                sample = dataset.sample(index, draw.kind, rng)
                name = sample.name
                prompt, target = self.tokens(sample, modalities)
                if len(prompt) + len(target) <= self.max_tokens:
                    features, media, keys = self._media(sample, modalities)
                    return Example(prompt, target, features, media, keys, rejected)
                length = f"{len(prompt)} + {len(target)} tokens, {self.max_tokens} are allowed"
                rejected.append(Rejected(dataset_name, name, length, long=True))
            except (
                ValueError,
                OSError,
            ) as error:  # a data set or reader of the caller may raise any ValueError
                rejected.append(Rejected(dataset_name, name, " ".join(str(error).split())))
            index = rng.choice(self.indices[draw.source])
        raise Unusable(dataset_name, rejected)

    def _media(self, sample: Sample, modalities: str) -> tuple[Entry, dict[str, np.ndarray], dict[str, str]]:
        """Cached features, arrays that are not in the cache, and keys, by stream."""
        cached: Entry = {}
        keys = {stream: self.features.key(sample, stream) for stream in streams(modalities)}
        missing = []
        for stream, key in keys.items():
            entry = self.features.get(key, stream)
            if entry is None:
                missing.append(stream)
            else:
                cached |= entry
        if not missing:
            return cached, {}, keys
        clip = self.reader(sample, modalities)
        media = {}
        for stream in missing:
            array = clip.frames if stream == "frames" else clip.audio
            if array is None:
                raise MediaError(f"{sample.name}: no {stream} in its media, which {modalities} needs")
            media[stream] = array
        return cached, media, keys

    def batch(self, examples: Sequence[Example], source: int) -> Batch:
        """Encode what is not cached, and stack the examples."""
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
            pad=self.tokenizer.eos_id,  # as officially: the mask also hides the final eos
        )
        stacked = {name: torch.stack([entry[name] for entry in features]) for name in features[0]}
        return Batch(self.modalities[source], ids, labels, mask, stacked)
