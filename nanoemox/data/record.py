"""What every data set gives: one question about one clip, with its answer."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True)
class Sample:
    """One question with its answer about one clip.

    Attributes:
        name: joins labels, subtitles and media.
        dataset: registry name of the data set.
        task: msa, mer, ov-mer, eri, mir or erg.
        question: its tag first.
        answer: without the closing "###".
        subtitle: the words, "" where there are none.
        history: the subtitle holds a dialogue history, to stand in the `<Dialogue History>` pair of tags.
        video, audio: media files. Sound comes from `audio`, or from `video` where `audio` is None.
        start, end: seconds from the beginning of the file, None for all of it.
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
    """An indexed set of clips, each of which can be asked in every one of `kinds` (answer types, tasks.md 3.8)."""

    @property
    def name(self) -> str: ...
    @property
    def kinds(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def task_of(self, kind: str) -> str: ...
    def sample(self, index: int, kind: str, rng: random.Random) -> Sample: ...


@dataclass(frozen=True)
class Record:
    """The annotations of one clip as they are stored: onehot, intent, description, ovlabel, ... in `fields`."""

    name: str
    subtitle: str
    fields: dict[str, Any] = field(default_factory=dict)
    history: bool = False
    media: str | None = None  # base name of the files where it is not `name`


@dataclass(frozen=True)
class Media:
    """Folders of video and sound; None where the set has none of that kind."""

    video: Path | None
    audio: Path | None
    endings: tuple[str, ...] = (".mp4", ".avi")

    def files(self, name: str) -> tuple[Path | None, Path | None]:
        """(video, sound) of a clip. The first ending that is on disk; no sound file beside a video: its own sound."""
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
    """An answer type: its task, and how question and answer are worded."""

    task: str
    ask: Callable[[Record, random.Random], tuple[str, str]]


class Records:
    """A data set held as records. `candidates` are the labels that its questions offer, if they offer any."""

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
        self.dataset, self.name = dataset, name or dataset
        self.records, self.media, self.candidates = list(records), media, tuple(candidates)
        self._kinds = dict(kinds)
        self.kinds = tuple(self._kinds)

    def __len__(self) -> int:
        return len(self.records)

    def task_of(self, kind: str) -> str:
        return self._kind(kind).task

    def sample(self, index: int, kind: str, rng: random.Random) -> Sample:
        """The question of a kind about clip `index`; `rng` draws its wording. No media is read."""
        record, (task, ask) = self.records[index], self._kind(kind)
        question, answer = ask(record, rng)
        video, audio = self.media.files(record.media or record.name)
        return Sample(
            record.name, self.dataset, task, question, answer, record.subtitle, record.history, video, audio
        )  # fmt: skip

    def _kind(self, kind: str) -> Kind:
        if kind not in self._kinds:
            raise ValueError(
                f"{self.name}: answer type {kind!r} does not exist; it offers {', '.join(self.kinds)}"
            )
        return self._kinds[kind]
