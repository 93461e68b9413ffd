"""What every clip of the corpus is: who speaks, the true emotion, and what face, voice and words show of it.

Two of the three always show the true emotion. In half of the clips the third does too; in the other half it
shows another one: the words, the face (a mask) or the voice (a put-on tone), each in a sixth of all clips.
The other emotion is drawn evenly, except for irony: half of the false words of the angry and the disgusted
are happy, half of those of the happy are unkind. So the truth is what two modalities agree on, no single one
is sufficient, and two that disagree leave a guess.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...tasks import EMOTIONS
from . import texts

MODALITIES = ("face", "voice", "words")
LIES = ("", "", "", *MODALITIES)  # equally often
CLIPS_PER_SPEAKER = 12
IRONIC = 0.5  # share of ironic words where irony is possible
_IRONY = {"angry": ["happy"], "disgusted": ["happy"], "happy": ["angry", "disgusted"]}
TRAIN, TEST, SOUNDS, VOICES, FACES = range(5)  # streams of random numbers
_NUMBERS = {TRAIN: 0, TEST: 40000, SOUNDS: 60000}  # first conversation, of five digits
MOST = 40000  # clips of one part


@dataclass(frozen=True)
class Plan:
    """One clip.

    Attributes:
        name: file name without its ending, as in AvaMERG.
        seed: start of the random numbers of its media.
        speaker: start of the random numbers of its face and voice.
        conversation, turn: number of the dialogue, in five digits, and place in it.
        emotion: the true emotion.
        lie: the modality that shows another emotion, "" if all agree.
        shown: modality -> the emotion that it shows.
        spoken: the words.
        answers: label or text of every task (`texts.answers`).
    """

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
        """`meta` of the clip's lines in a manifest."""
        return {
            "speaker": self.speaker,
            "incongruent": bool(self.lie),
            "lies": self.lie or None,
            "shown": self.shown,
        }


def plan(seed: int, part: int, count: int, speakers: range) -> list[Plan]:
    """The clips of one part, two per conversation.

    Combinations of emotion and lie are as even as the count allows. In clips of sound alone (SOUNDS) the
    words are right half of the time, so that the voice has to be heard.

    Args:
        seed: seed of the corpus.
        part: TRAIN, TEST or SOUNDS.
        count: number of clips.
        speakers: numbers of the people.
    """
    rng = np.random.default_rng([seed, part])
    lies = ("", "words") if part == SOUNDS else LIES
    cells = [(emotion, lie) for emotion in EMOTIONS for lie in lies]
    rounds = -(-count // len(cells))
    order = np.concatenate([rng.permutation(len(cells)) for _ in range(rounds)])[:count]
    plans = []
    speaker, thing = 0, ""
    for index, cell in enumerate(order):
        turn = index % 2
        if turn == 0:
            speaker = int(rng.choice(speakers))
            thing = texts.THINGS[rng.integers(len(texts.THINGS))]
        emotion, lie = cells[cell]
        shown = _shown(emotion, lie, rng)
        spoken = texts.speak(shown["words"], thing, rng)
        conversation = f"{_NUMBERS[part] + index // 2:05d}"
        plans.append(
            Plan(
                name=f"dia{conversation}utt{2 * turn}_{speaker}",
                seed=(seed, part, index),
                speaker=speaker,
                conversation=conversation,
                turn=turn,
                emotion=emotion,
                lie=lie,
                shown=shown,
                spoken=spoken,
                answers=texts.answers(spoken, emotion, shown, lie, rng),
            )
        )
    return plans


def _shown(emotion: str, lie: str, rng: np.random.Generator) -> dict[str, str]:
    """Modality -> the emotion that it shows."""
    shown = dict.fromkeys(MODALITIES, emotion)
    if lie:
        others = [other for other in EMOTIONS if other != emotion]
        if lie == "words" and emotion in _IRONY and rng.random() < IRONIC:
            others = _IRONY[emotion]
        shown[lie] = others[rng.integers(len(others))]
    return shown


def speakers_of(count: int) -> int:
    """Number of people of a part with `count` clips."""
    return max(2, -(-count // CLIPS_PER_SPEAKER))


def plans(seed: int, n: int, test: int) -> tuple[list[Plan], list[Plan], list[Plan]]:
    """The corpus: `n` training clips, `test` clips of other people, n / 2 voices of the training people."""
    train_speakers = speakers_of(n)
    test_speakers = range(train_speakers, train_speakers + speakers_of(test))
    return (
        plan(seed, TRAIN, n, range(train_speakers)),
        plan(seed, TEST, test, test_speakers),
        plan(seed, SOUNDS, max(2, n // 2), range(train_speakers)),
    )
