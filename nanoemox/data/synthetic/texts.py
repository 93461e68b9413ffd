"""The words of a clip, and the answers to every task about it: a closed grammar of a few hundred words."""

from dataclasses import dataclass
from typing import Any

import numpy as np

THINGS = (
    "letter", "phone", "cake", "book", "coat", "ring", "photo", "guitar", "lamp", "bike", "bag", "chair",
    "watch", "boat", "box", "clock",
)  # fmt: skip
OPENERS = ("", "", "", "well, ", "you know, ", "listen, ", "so, ")


@dataclass(frozen=True)
class Frame:
    """A sentence template. Braces stand for the thing that it is about.

    Attributes:
        shows: emotions that the sentence can voice.
        intent: its intent when it is meant.
        text: the sentence.
        event, cause: event and cause of the chain of empathy.
    """

    shows: tuple[str, ...]
    intent: str
    text: str
    event: str
    cause: str


# Emotions (several: the words alone are ambiguous), intent, text, event, cause.
_FRAMES = (
    ("happy", "praise", "you did so well with the {}, i love it.",
     "good work with the {}", "the {} looks great"),
    ("happy", "thank", "thank you for the {}, it is lovely.", "a gift of the {}", "the {} was a gift"),
    ("happy", "flaunt", "look at my new {}, it is the best.", "a new {}", "the {} is new"),
    ("happy", "greet", "hello my friend, how good to see you.", "meeting a friend", "a friend came to visit"),
    ("sad", "apologise", "i am sorry about the {}, it was my fault.", "losing the {}", "the {} is lost"),
    ("sad", "inform", "the {} of my mother is gone for ever.", "losing the {}", "the {} is gone"),
    ("sad", "ask for help", "i lost my {} and my friend, please help me.", "losing the {}", "the {} is lost"),
    ("angry", "criticize", "you broke the {} again, you never listen.", "a broken {}", "the {} was broken"),
    ("angry", "complain", "i waited an hour for the {}, it is not fair.",
     "waiting for the {}", "the {} was late"),
    ("angry", "oppose", "no, you will not take my {} from me.",
     "a fight about the {}", "someone wants the {}"),
    ("fearful", "prevent", "stop, do not go near the {}.", "danger near the {}", "the {} is not safe"),
    ("fearful", "ask for help", "please help me, it moves behind the {}.",
     "danger near the {}", "something moves behind the {}"),
    ("fearful", "prevent", "stay back, someone is at the {}.", "a noise at night", "someone is at the {}"),
    ("disgusted", "criticize", "the {} is dirty and smells so bad.", "a dirty {}", "the {} smells bad"),
    ("disgusted", "oppose", "i will not touch that old wet {}.", "a dirty {}", "the {} is wet and old"),
    ("disgusted", "complain", "there is dirt all over my {}.", "a dirty {}", "the {} is full of dirt"),
    ("surprised", "praise", "wow, i never saw such a {} before.", "seeing the {}", "the {} is like no other"),
    ("surprised", "inform", "oh, the {} is here one day early.", "the {} coming early", "the {} came early"),
    ("surprised", "greet", "oh, you are here, i had no idea.",
     "meeting a friend", "a friend came without a word"),
    ("neutral", "inform", "the {} is on the table next to the door.",
     "talking about the {}", "nothing is new"),
    ("neutral", "arrange", "let us meet at noon and bring the {}.", "making a plan", "it is only a plan"),
    ("neutral", "leave", "i have to go now, the {} is in the hall.", "leaving the house", "it is time to go"),
    ("happy surprised", "flaunt", "can you believe it, the {} is mine.",
     "getting the {}", "the {} came as a gift"),
    ("sad fearful", "ask for help", "i am all alone here without the {}.", "being alone", "the {} is gone"),
    ("angry disgusted", "complain", "this {} is bad, take it away now.", "a bad {}", "the {} is bad"),
    ("neutral sad", "inform", "the {} is not here today.", "missing the {}", "the {} is not here"),
)  # fmt: skip
FRAMES = tuple(Frame(tuple(shows.split()), *rest) for shows, *rest in _FRAMES)
AMBIGUOUS = 0.3  # share of ambiguous sentences, for the emotions that have one
GLAD_INTENTS, BAD_INTENTS = {"praise", "thank", "flaunt", "greet"}, {"criticize", "complain", "oppose"}
INTENTS = tuple(sorted({frame.intent for frame in FRAMES} | {"taunt", "joke"}))

FACE = {
    "angry": "draws the brows down and presses the lips",
    "disgusted": "wrinkles the nose and lifts the upper lip",
    "fearful": "opens the eyes wider and wider",
    "happy": "smiles with raised cheeks",
    "neutral": "keeps a still face",
    "sad": "lowers the lip corners and lifts the inner brows",
    "surprised": "opens the eyes wide for a moment",
}
VOICE = {
    "angry": "is loud and rough",
    "disgusted": "is slow and creaks",
    "fearful": "is high and trembles",
    "happy": "is bright and lively",
    "neutral": "is even",
    "sad": "is low and weak",
    "surprised": "jumps up at the end",
}
WORDS = {
    "angry": "blame someone",
    "disgusted": "tell of something dirty",
    "fearful": "tell of danger",
    "happy": "tell of something good",
    "neutral": "tell a plain fact",
    "sad": "tell of a loss",
    "surprised": "tell of something sudden",
}
# The second emotion of an emotion with this intent, else of the emotion.
SECOND: dict[tuple[str, str] | str, str] = {
    ("happy", "thank"): "grateful",
    ("happy", "flaunt"): "proud",
    ("happy", "joke"): "amused",
    ("sad", "apologise"): "guilty",
    ("sad", "ask for help"): "lonely",
    ("fearful", "prevent"): "worried",
    "angry": "annoyed",
    "disgusted": "revolted",
    "fearful": "anxious",
    "happy": "cheerful",
    "neutral": "calm",
    "sad": "hurt",
    "surprised": "amazed",
}
GOALS = {
    "angry": "to calm the speaker",
    "disgusted": "to take the side of the speaker",
    "fearful": "to make the speaker feel safe",
    "happy": "to share the joy",
    "neutral": "to keep the talk going",
    "sad": "to comfort the speaker",
    "surprised": "to ask what happened",
}
REPLIES = {
    "angry": ("You are right to be angry, tell me about the {}.", "That is not fair, I hear you."),
    "disgusted": ("That sounds awful, leave the {} to me.", "I would not touch it, let us clean up."),
    "fearful": ("You are safe now, I stay with you.", "Take a deep breath, we look at the {} together."),
    "happy": ("That is wonderful, I am so glad for you.", "How lovely, tell me more about the {}."),
    "neutral": ("All right, thank you for telling me.", "Good, I will think of the {}."),
    "sad": ("I am sorry about the {}, I am here.", "That must hurt, take all the time you need."),
    "surprised": ("What a surprise, tell me more.", "I did not see that coming, how is that?"),
}
SEEN_THROUGH = {
    "": "",
    "words": "I hear more than your words. ",
    "face": "You do not have to wear a face. ",
    "voice": "Your voice does not fool me. ",
}


@dataclass(frozen=True)
class Spoken:
    """A sentence about a thing: its template, the thing, and the text."""

    frame: Frame
    thing: str
    text: str


def speak(emotion: str, thing: str, rng: np.random.Generator) -> Spoken:
    """Draw a sentence whose words voice this emotion."""
    plain = [frame for frame in FRAMES if frame.shows == (emotion,)]
    ambiguous = [frame for frame in FRAMES if emotion in frame.shows and len(frame.shows) > 1]
    frames = ambiguous if ambiguous and rng.random() < AMBIGUOUS else plain
    frame = frames[rng.integers(len(frames))]
    opener = OPENERS[rng.integers(len(OPENERS))]
    text = opener + frame.text.format(thing)
    return Spoken(frame, thing, text[0].upper() + text[1:])


def true_intent(frame: Frame, emotion: str, lie: str) -> str:
    """The intent of a sentence. Kind words that are not meant are a taunt, unkind ones a joke."""
    if lie == "words":
        if frame.intent in GLAD_INTENTS and emotion in ("angry", "disgusted", "sad", "fearful"):
            return "taunt"
        if frame.intent in BAD_INTENTS and emotion == "happy":
            return "joke"
    return frame.intent


def polarity(emotion: str) -> str:
    """The sentiment of an emotion."""
    if emotion == "happy":
        return "positive"
    return "neutral" if emotion in ("neutral", "surprised") else "negative"


def answers(
    spoken: Spoken, emotion: str, shown: dict[str, str], lie: str, rng: np.random.Generator
) -> dict[str, Any]:
    """Every label and text about a clip.

    Args:
        spoken: the words.
        emotion: the true emotion.
        shown: modality -> the emotion that it shows.
        lie: the modality that shows another emotion, "" if all agree.
        rng: draws the reply.

    Returns:
        sentiment, emotion, labels (a list), reason, intent, chain (event, emotion, cause, goal) and reply.
    """
    frame, thing = spoken.frame, spoken.thing
    intent = true_intent(frame, emotion, lie)
    second = SECOND.get((emotion, intent), SECOND[emotion])
    face, voice, words = FACE[shown["face"]], VOICE[shown["voice"]], WORDS[shown["words"]]
    evidence = f"The person {face}, the voice {voice} and the words {words}."
    verdict = f"The {lie} {'do' if lie == 'words' else 'does'} not fit" if lie else "All of it agrees"
    replies = REPLIES[emotion]
    reply = replies[rng.integers(len(replies))].format(thing)
    chain = {
        "event": frame.event.format(thing),
        "emotion": emotion,
        "cause": "the words are not meant" if lie == "words" else frame.cause.format(thing),
        "goal": GOALS[emotion],
    }
    return {
        "sentiment": polarity(emotion),
        "emotion": emotion,
        "labels": [emotion, second],
        "reason": f"{evidence} {verdict}, so the person is {emotion}.",
        "intent": intent,
        "chain": chain,
        "reply": SEEN_THROUGH[lie] + reply,
    }
