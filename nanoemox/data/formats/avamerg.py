"""AvaMERG: dialogues with a chain of empathy (docs/data.md section 4)."""

import random
from pathlib import Path
from typing import Any

from ...errors import DataError
from .. import questions
from ..files import check_split, read_json, require
from ..record import Kind, Media, Record, Records

FILES = {"train": "train.json", "test": "v_test_v5_0.json"}
CHAIN = ("event_scenario", "speaker_emotion", "emotion_cause", "goal_to_response")
# The labels that a recognition question may offer if it is asked without a dialogue.
CANDIDATES = (
    "anxious", "ashamed", "burdened", "caring", "conflicted", "confused", "confusion", "content",
    "disappointment", "frustrated", "guilty", "helpless", "hopeful", "lonely", "nervous", "nostalgic",
    "overwhelm", "proud", "sadness", "stressed", "surprised", "uneasy", "upset", "weary", "worry",
)  # fmt: skip


def _empathy(record: Record, rng: random.Random) -> tuple[str, str]:
    fields = record.fields
    chain = [fields[key] for key in CHAIN]
    return questions.reply(chain, fields["response"], fields["context"], fields["current_user_input"])


def _emotion(record: Record, rng: random.Random) -> tuple[str, str]:
    fields = record.fields
    return questions.speaker_emotion(
        fields["speaker_emotion"], fields["context"], fields["current_user_input"]
    )


KINDS = {"empathic_response_with_coe": Kind("erg", _empathy), "emotion_recognition": Kind("mer", _emotion)}


def open_set(
    format: str,
    root: Path,
    split: str,
    name: str | None,
    *,
    video: str | None = None,
    audio: str | None = None,
) -> Records:
    """Open one part of AvaMERG.

    The training part has a record for every turn. The test part has one for the last turn of every dialogue,
    and its media are in test_video and test_audio.
    """
    check_split(format, split, FILES)
    path = root / FILES[split]
    records: list[Record] = []
    for number, item in enumerate(read_json(path, list), 1):
        where = f"{path}: item {number}"
        records += _conversation(require(item, dict, where), where, split)
    prefix = "test_" if split == "test" else ""
    media = Media(root / (video or f"{prefix}video"), root / (audio or f"{prefix}audio"))
    return Records(format, records, KINDS, media, name=name, candidates=CANDIDATES)


def _conversation(item: dict[str, Any], where: str, split: str) -> list[Record]:
    """The records of one conversation."""
    turns = require(item.get("turns"), list, f"{where}: turns")
    if not turns:
        raise DataError(f"{where}: turns is empty; take the conversation out")
    profile = require(item.get("speaker_profile"), dict, f"{where}: speaker_profile")
    shared = {
        "conversation_id": require(item.get("conversation_id"), str, f"{where}: conversation_id"),
        "speaker_profile": profile,
        "speaker_id": require(profile.get("ID"), int, f"{where}: speaker_profile: ID"),
        "listener_profile": item.get("listener_profile"),
        "topic": item.get("topic"),
    }
    used = turns if split == "train" else turns[-1:]
    return [_turn(require(turn, dict, where), shared, where, split) for turn in used]


def _turn(turn: dict[str, Any], shared: dict[str, Any], where: str, split: str) -> Record:
    """The record of one turn; `shared` are the fields of its conversation."""
    place = f"{where}: turn {turn.get('turn_id')}"
    turn_id = require(turn.get("turn_id"), str, f"{place}: turn_id")
    if not turn_id.isdecimal():
        raise DataError(f"{place}: turn_id must be a number written as text")
    history = require(turn.get("dialogue_history"), list, f"{place}: history")
    utterances = [_utterance(entry, place) for entry in history]
    if not utterances:
        raise DataError(f"{place}: dialogue_history is empty; it must end with what the speaker says")
    chain = require(turn.get("chain_of_empathy"), dict, f"{place}: chain_of_empathy")
    fields = {
        **{key: require(chain.get(key), str, f"{place}: chain_of_empathy: {key}") for key in CHAIN},
        **shared,
        "turn_id": turn_id,
        "context": require(turn.get("context"), str, f"{place}: context"),
        "current_user_input": utterances[-1][1],
        "response": require(turn.get("response"), str, f"{place}: response"),
    }
    earlier = "\n".join(f"{role}: {text}" for role, text in utterances[:-1])
    number = shared["conversation_id"]
    media = f"dia{number}utt{2 * int(turn_id)}_{shared['speaker_id']}"
    name = f"{number}_{turn_id}" if split == "train" else media
    return Record(name, earlier, fields, history=True, media=media)


def _utterance(entry: Any, place: str) -> tuple[str, str]:
    """(role, text) of an entry of the dialogue history."""
    where = f"{place}: dialogue_history"
    entry = require(entry, dict, where)
    role = require(entry.get("role"), str, f"{where}: role")
    text = require(entry.get("utterance"), str, f"{where}: utterance")
    return role, text
