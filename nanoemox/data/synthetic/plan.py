"""What every clip of the corpus is: who speaks, what is felt, and what face, voice and words show of it.

Two of the three always show the true emotion. In half of the clips the third does too; in the other half it shows
another one: the words, the face (a mask) or the voice (a put-on tone), each in a sixth of all clips. The other one is
drawn evenly, but for irony: half of the false words of the angry and the disgusted are glad, half of those of the happy
are unkind. So the truth is what two agree on, no one of them is enough, and two that disagree leave a guess.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...tasks import EMOTIONS
from . import texts

MODALITIES = ("face", "voice", "words")
LIES = ("", "", "", *MODALITIES)  # equally often
CLIPS_PER_SPEAKER = 12
IRONIC = 0.5
_IRONY = {"angry": ["happy"], "disgusted": ["happy"], "happy": ["angry", "disgusted"]}
TRAIN, TEST, SOUNDS, VOICES, FACES = range(5)  # streams of random numbers
_NUMBERS = {TRAIN: 0, TEST: 40000, SOUNDS: 60000}  # first conversation, of five digits
MOST = 40000  # clips of a part


@dataclass(frozen=True)
class Plan:
    """One clip. `seed` starts the random numbers of its media, `speaker` those of its face and voice."""

    name: str
    seed: tuple[int, ...]
    speaker: int
    conversation: str
    turn: int
    emotion: str
    lie: str
    shown: dict[str, str]
    spoken: texts.Spoken
    answers: dict[str, Any]

    @property
    def meta(self) -> dict[str, Any]:
        return {
            "speaker": self.speaker,
            "incongruent": bool(self.lie),
            "lies": self.lie or None,
            "shown": self.shown,
        }


def plan(seed: int, part: int, count: int, speakers: range) -> list[Plan]:
    """`count` clips, two a conversation; the combinations of emotion and lie are as even as the count allows.

    In clips of sound alone (SOUNDS) the words are right half of the time, so that the voice has to be heard.
    """
    rng = np.random.default_rng([seed, part])
    cells = [(emotion, lie) for emotion in EMOTIONS for lie in (("", "words") if part == SOUNDS else LIES)]
    order = np.concatenate([rng.permutation(len(cells)) for _ in range(-(-count // len(cells)))])[:count]
    plans = []
    for index, cell in enumerate(order):
        turn = index % 2
        if turn == 0:
            speaker = int(rng.choice(speakers))
            thing = texts.THINGS[rng.integers(len(texts.THINGS))]
        emotion, lie = cells[cell]
        shown = dict.fromkeys(MODALITIES, emotion)
        if lie:
            others = [other for other in EMOTIONS if other != emotion]
            if lie == "words" and emotion in _IRONY and rng.random() < IRONIC:
                others = _IRONY[emotion]
            shown[lie] = others[rng.integers(len(others))]
        spoken = texts.speak(shown["words"], thing, rng)
        number = f"{_NUMBERS[part] + index // 2:05d}"
        plans.append(
            Plan(
                f"dia{number}utt{2 * turn}_{speaker}",
                (seed, part, index),
                speaker,
                number,
                turn,
                emotion,
                lie,
                shown,
                spoken,
                texts.answers(spoken, emotion, shown, lie, rng),
            )  # fmt: skip
        )
    return plans


def speakers_of(count: int) -> int:
    return max(2, -(-count // CLIPS_PER_SPEAKER))


def plans(seed: int, n: int, test: int) -> tuple[list[Plan], list[Plan], list[Plan]]:
    """The corpus of `n` clips, of `test` clips of other people, and of n / 2 voices alone."""
    known = speakers_of(n)
    return (
        plan(seed, TRAIN, n, range(known)),
        plan(seed, TEST, test, range(known, known + speakers_of(test))),
        plan(seed, SOUNDS, max(2, n // 2), range(known)),
    )
