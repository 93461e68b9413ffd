"""What is said, and every answer about it: a closed grammar of a few hundred words."""

from dataclasses import dataclass
from typing import Any

import numpy as np

THINGS = (
    "letter", "phone", "cake", "book", "coat", "ring", "photo", "guitar", "lamp", "bike", "bag", "chair", "watch",
    "boat", "box", "clock",
)  # fmt: skip
OPENERS = ("", "", "", "well, ", "you know, ", "listen, ", "so, ")


@dataclass(frozen=True)
class Frame:
    """A sentence, the emotions that it may voice, the intent it has when it is meant, and what it is about."""

    shows: tuple[str, ...]
    intent: str
    text: str
    event: str
    cause: str


FRAMES = tuple(
    Frame(tuple(shows.split()), *rest)
    for shows, *rest in (
        ("happy", "praise", "you did so well with the {}, i love it.", "good work with the {}", "the {} looks great"),
        ("happy", "thank", "thank you for the {}, it is lovely.", "a gift of the {}", "the {} was a gift"),
        ("happy", "flaunt", "look at my new {}, it is the best.", "a new {}", "the {} is new"),
        ("happy", "greet", "hello my friend, how good to see you.", "meeting a friend", "a friend came to visit"),
        ("sad", "apologise", "i am sorry about the {}, it was my fault.", "losing the {}", "the {} is lost"),
        ("sad", "inform", "the {} of my mother is gone for ever.", "losing the {}", "the {} is gone"),
        ("sad", "ask for help", "i lost my {} and my friend, please help me.", "losing the {}", "the {} is lost"),
        ("angry", "criticize", "you broke the {} again, you never listen.", "a broken {}", "the {} was broken"),
        ("angry", "complain", "i waited an hour for the {}, it is not fair.", "waiting for the {}", "the {} was late"),
        ("angry", "oppose", "no, you will not take my {} from me.", "a fight about the {}", "someone wants the {}"),
        ("fearful", "prevent", "stop, do not go near the {}.", "danger near the {}", "the {} is not safe"),
        ("fearful", "ask for help", "please help me, it moves behind the {}.", "danger near the {}",
         "something moves behind the {}"),
        ("fearful", "prevent", "stay back, someone is at the {}.", "a noise at night", "someone is at the {}"),
        ("disgusted", "criticize", "the {} is dirty and smells so bad.", "a dirty {}", "the {} smells bad"),
        ("disgusted", "oppose", "i will not touch that old wet {}.", "a dirty {}", "the {} is wet and old"),
        ("disgusted", "complain", "there is dirt all over my {}.", "a dirty {}", "the {} is full of dirt"),
        ("surprised", "praise", "wow, i never saw such a {} before.", "seeing the {}", "the {} is like no other"),
        ("surprised", "inform", "oh, the {} is here one day early.", "the {} coming early", "the {} came early"),
        ("surprised", "greet", "oh, you are here, i had no idea.", "meeting a friend", "a friend came without a word"),
        ("neutral", "inform", "the {} is on the table next to the door.", "talking about the {}", "nothing is new"),
        ("neutral", "arrange", "let us meet at noon and bring the {}.", "making a plan", "it is only a plan"),
        ("neutral", "leave", "i have to go now, the {} is in the hall.", "leaving the house", "it is time to go"),
        ("happy surprised", "flaunt", "can you believe it, the {} is mine.", "getting the {}", "the {} came as a gift"),
        ("sad fearful", "ask for help", "i am all alone here without the {}.", "being alone", "the {} is gone"),
        ("angry disgusted", "complain", "this {} is bad, take it away now.", "a bad {}", "the {} is bad"),
        ("neutral sad", "inform", "the {} is not here today.", "missing the {}", "the {} is not here"),
    )
)  # fmt: skip
# Emotions that have an ambiguous sentence draw it this often.
AMBIGUOUS = 0.3
GLAD_INTENTS, BAD_INTENTS = {"praise", "thank", "flaunt", "greet"}, {"criticize", "complain", "oppose"}
INTENTS = tuple(sorted({frame.intent for frame in FRAMES} | {"taunt", "joke"}))

FACE = {
    "angry": "draws the brows down and presses the lips", "disgusted": "wrinkles the nose and lifts the upper lip",
    "fearful": "opens the eyes wider and wider", "happy": "smiles with raised cheeks", "neutral": "keeps a still face",
    "sad": "lowers the lip corners and lifts the inner brows", "surprised": "opens the eyes wide for a moment",
}  # fmt: skip
VOICE = {
    "angry": "is loud and rough", "disgusted": "is slow and creaks", "fearful": "is high and trembles",
    "happy": "is bright and lively", "neutral": "is even", "sad": "is low and weak", "surprised": "jumps up at the end",
}  # fmt: skip
WORDS = {
    "angry": "blame someone", "disgusted": "tell of something dirty", "fearful": "tell of danger",
    "happy": "tell of something good", "neutral": "tell a plain fact", "sad": "tell of a loss",
    "surprised": "tell of something sudden",
}  # fmt: skip
SECOND: dict[Any, str] = {
    ("happy", "thank"): "grateful", ("happy", "flaunt"): "proud", ("happy", "joke"): "amused",
    ("sad", "apologise"): "guilty", ("sad", "ask for help"): "lonely", ("fearful", "prevent"): "worried",
    "angry": "annoyed", "disgusted": "revolted", "fearful": "anxious", "happy": "cheerful", "neutral": "calm",
    "sad": "hurt", "surprised": "amazed",
}  # fmt: skip
GOALS = {
    "angry": "to calm the speaker", "disgusted": "to take the side of the speaker",
    "fearful": "to make the speaker feel safe", "happy": "to share the joy", "neutral": "to keep the talk going",
    "sad": "to comfort the speaker", "surprised": "to ask what happened",
}  # fmt: skip
REPLIES = {
    "angry": ("You are right to be angry, tell me about the {}.", "That is not fair, I hear you."),
    "disgusted": ("That sounds awful, leave the {} to me.", "I would not touch it, let us clean up."),
    "fearful": ("You are safe now, I stay with you.", "Take a deep breath, we look at the {} together."),
    "happy": ("That is wonderful, I am so glad for you.", "How lovely, tell me more about the {}."),
    "neutral": ("All right, thank you for telling me.", "Good, I will think of the {}."),
    "sad": ("I am sorry about the {}, I am here.", "That must hurt, take all the time you need."),
    "surprised": ("What a surprise, tell me more.", "I did not see that coming, how is that?"),
}  # fmt: skip
SEEN_THROUGH = {
    "": "", "words": "I hear more than your words. ", "face": "You do not have to wear a face. ",
    "voice": "Your voice does not fool me. ",
}  # fmt: skip


@dataclass(frozen=True)
class Spoken:
    """A sentence about a thing."""

    frame: Frame
    thing: str
    text: str


def speak(emotion: str, thing: str, rng: np.random.Generator) -> Spoken:
    """A sentence whose words voice this emotion."""
    plain = [frame for frame in FRAMES if frame.shows == (emotion,)]
    shared = [frame for frame in FRAMES if emotion in frame.shows and len(frame.shows) > 1]
    frames = shared if shared and rng.random() < AMBIGUOUS else plain
    frame = frames[rng.integers(len(frames))]
    opener = OPENERS[rng.integers(len(OPENERS))]
    text = opener + frame.text.format(thing)
    return Spoken(frame, thing, text[0].upper() + text[1:])


def true_intent(frame: Frame, emotion: str, lie: str) -> str:
    """Words that are not meant turn kind ones into a taunt and unkind ones into a joke."""
    if (
        lie == "words"
        and frame.intent in GLAD_INTENTS
        and emotion in ("angry", "disgusted", "sad", "fearful")
    ):
        return "taunt"
    if lie == "words" and frame.intent in BAD_INTENTS and emotion == "happy":
        return "joke"
    return frame.intent


def polarity(emotion: str) -> str:
    return (
        "positive" if emotion == "happy" else "neutral" if emotion in ("neutral", "surprised") else "negative"
    )


def answers(
    spoken: Spoken, emotion: str, shown: dict[str, str], lie: str, rng: np.random.Generator
) -> dict[str, Any]:
    """Every label and text about a clip: sentiment, emotion, labels, reason, intent, chain and reply."""
    frame, thing = spoken.frame, spoken.thing
    intent = true_intent(frame, emotion, lie)
    second = SECOND.get((emotion, intent), SECOND[emotion])
    verdict = f"The {lie} {'do' if lie == 'words' else 'does'} not fit" if lie else "All of it agrees"
    cause = "the words are not meant" if lie == "words" else frame.cause.format(thing)
    reply = REPLIES[emotion][rng.integers(len(REPLIES[emotion]))].format(thing)
    return {
        "sentiment": polarity(emotion),
        "emotion": emotion,
        "labels": [emotion, second],
        "reason": f"The person {FACE[shown['face']]}, the voice {VOICE[shown['voice']]} and the words "
        f"{WORDS[shown['words']]}. {verdict}, so the person is {emotion}.",
        "intent": intent,
        "chain": {
            "event": frame.event.format(thing),
            "emotion": emotion,
            "cause": cause,
            "goal": GOALS[emotion],
        },
        "reply": SEEN_THROUGH[lie] + reply,
    }  # fmt: skip
