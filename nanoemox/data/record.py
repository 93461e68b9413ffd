"""Samples, the interface of a data set, and data sets that consist of records (docs/data.md)."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..errors import UsageError


@dataclass(frozen=True)
class Sample:
    """One question about one clip, with its answer.

    Attributes:
        name: name of the clip; joins labels, subtitles and media.
        dataset: format of the data set, or the name of a manifest.
        task: msa, mer, ov-mer, eri, mir or erg.
        question: the question with its tag (docs/tasks.md section 3.1).
        answer: the answer, without the closing "###".
        subtitle: the words that are spoken, "" where there are none.
        history: whether `subtitle` is a dialogue history, which has a tag pair of its own in the prompt.
        video, audio: media files. Sound is read from `audio`, or from `video` where `audio` is None.
        start, end: seconds from the beginning of the file; None for its beginning or end.
    """

    name: str
    dataset: str
    task: str
    question: str
    answer: str
    subtitle: str | None
    history: bool = False
    video: Path | None = None
    audio: Path | None = None
    start: float | None = None
    end: float | None = None


class Dataset(Protocol):
    """An indexed set of clips, with one or several answer types for each (docs/tasks.md section 3.8)."""

    @property
    def name(self) -> str:
        """Name of the set, for messages."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The answer types."""

    def __len__(self) -> int:
        """Number of clips."""

    def task_of(self, kind: str) -> str:
        """The task of an answer type."""

    def sample(self, index: int, kind: str, rng: random.Random) -> Sample:
        """The question of type `kind` about clip `index`; `rng` draws its wording."""


@dataclass(frozen=True)
class Record:
    """The annotations of one clip, as stored.

    Attributes:
        name: name of the clip.
        subtitle: words or dialogue history, "" where there are none.
        fields: onehot, intent, description, ovlabel, ... -> value.
        history: whether `subtitle` is a dialogue history.
        media: base name of the media files, None where it is `name`.
    """

    name: str
    subtitle: str
    fields: dict[str, Any] = field(default_factory=dict)
    history: bool = False
    media: str | None = None


@dataclass(frozen=True)
class Media:
    """Folders of video and sound; None where the set has none of that kind.

    `endings` are those of video files, by preference.
    """

    video: Path | None
    audio: Path | None
    endings: tuple[str, ...] = (".mp4", ".avi")

    def files(self, name: str) -> tuple[Path | None, Path | None]:
        """(video, sound) of a clip.

        The video has the first ending that exists on disk, else the first of all. The sound is None where a
        video has no .wav beside it: its own sound is used then.
        """
        video = audio = None
        if self.video is not None:
            candidates = [self.video / (name + ending) for ending in self.endings]
            video = next((file for file in candidates if file.is_file()), candidates[0])
        if self.audio is not None:
            audio = self.audio / f"{name}.wav"
            if video is not None and not audio.is_file():
                audio = None
        return video, audio


class Kind(NamedTuple):
    """An answer type: its task, and the function that words question and answer of a record."""

    task: str
    ask: Callable[[Record, random.Random], tuple[str, str]]


class Records:
    """A data set of records, as a `Dataset`.

    Args:
        dataset: the format; `Sample.dataset` of its samples.
        records: one per clip.
        kinds: answer type -> its task and wording.
        media: folders of the media files.
        name: name of this set, by default the format.
        candidates: labels that the questions offer, if they offer any.
    """

    def __init__(
        self,
        dataset: str,
        records: Sequence[Record],
        kinds: Mapping[str, Kind],
        media: Media,
        *,
        name: str | None = None,
        candidates: Sequence[str] = (),
    ):
        self.dataset = dataset
        self.name = name or dataset
        self.records = list(records)
        self.media = media
        self.candidates = tuple(candidates)
        self.kinds = tuple(kinds)
        self._kinds = dict(kinds)

    def __len__(self) -> int:
        return len(self.records)

    def task_of(self, kind: str) -> str:
        """The task of an answer type. Raises UsageError for an unknown one."""
        return self._kind(kind).task

    def sample(self, index: int, kind: str, rng: random.Random) -> Sample:
        """The question of type `kind` about clip `index`; `rng` draws its wording. No media is read.

        Raises UsageError for an unknown answer type.
        """
        record = self.records[index]
        task, ask = self._kind(kind)
        question, answer = ask(record, rng)
        video, audio = self.media.files(record.media or record.name)
        return Sample(
            name=record.name,
            dataset=self.dataset,
            task=task,
            question=question,
            answer=answer,
            subtitle=record.subtitle,
            history=record.history,
            video=video,
            audio=audio,
        )

    def _kind(self, kind: str) -> Kind:
        if kind not in self._kinds:
            raise UsageError(
                f"{self.name}: answer type {kind!r} does not exist; it offers {', '.join(self.kinds)}"
            )
        return self._kinds[kind]
