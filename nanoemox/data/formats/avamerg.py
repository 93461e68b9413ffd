"""AvaMERG: dialogues with a chain of empathy (tasks.md 5.4)."""

import random
from pathlib import Path
from typing import Any

from .. import questions
from ..files import check_split, need, read_json
from ..record import Kind, Media, Record, Records

FILES = {"train": "train.json", "test": "v_test_v5_0.json"}
CHAIN = ("event_scenario", "speaker_emotion", "emotion_cause", "goal_to_response")
# What the recognition question may offer, where one is asked without a dialogue.
CANDIDATES = (
    "anxious", "ashamed", "burdened", "caring", "conflicted", "confused", "confusion", "content", "disappointment",
    "frustrated", "guilty", "helpless", "hopeful", "lonely", "nervous", "nostalgic", "overwhelm", "proud", "sadness",
    "stressed", "surprised", "uneasy", "upset", "weary", "worry",
)  # fmt: skip


def _empathy(record: Record, rng: random.Random) -> tuple[str, str]:
    f = record.fields
    return questions.reply([f[key] for key in CHAIN], f["response"], f["context"], f["current_user_input"])


def _emotion(record: Record, rng: random.Random) -> tuple[str, str]:
    f = record.fields
    return questions.speaker_emotion(f["speaker_emotion"], f["context"], f["current_user_input"])


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
    """Training: a record a turn. Test: the last turn of each dialogue, with media in test_video and test_audio."""
    check_split(format, split, tuple(FILES))
    prefix = "test_" if split == "test" else ""
    path = root / FILES[split]
    records = [
        record
        for number, item in enumerate(read_json(path, list), 1)
        for record in _conversation(
            need(item, dict, f"{path}: item {number}"), f"{path}: item {number}", split
        )
    ]
    media = Media(root / (video or f"{prefix}video"), root / (audio or f"{prefix}audio"))
    return Records(format, records, KINDS, media, name=name, candidates=CANDIDATES)


def _conversation(item: dict[str, Any], where: str, split: str) -> list[Record]:
    number = need(item.get("conversation_id"), str, f"{where}: conversation_id")
    turns = need(item.get("turns"), list, f"{where}: turns")
    if not turns:
        raise ValueError(f"{where}: turns is empty; take the conversation out")
    profile = need(item.get("speaker_profile"), dict, f"{where}: speaker_profile")
    speaker = need(profile.get("ID"), int, f"{where}: speaker_profile: ID")
    records = []
    for turn in turns if split == "train" else turns[-1:]:
        place = f"{where}: turn {need(turn, dict, where).get('turn_id')}"
        turn_id = need(turn.get("turn_id"), str, f"{place}: turn_id")
        if not turn_id.isdecimal():
            raise ValueError(f"{place}: turn_id must be a number written as text")
        file = f"dia{number}utt{2 * int(turn_id)}_{speaker}"
        said = [
            _utterance(entry, place)
            for entry in need(turn.get("dialogue_history"), list, f"{place}: history")
        ]
        if not said:
            raise ValueError(f"{place}: dialogue_history is empty; it must end with what the speaker says")
        chain = need(turn.get("chain_of_empathy"), dict, f"{place}: chain_of_empathy")
        fields = {key: need(chain.get(key), str, f"{place}: chain_of_empathy: {key}") for key in CHAIN}
        fields |= {
            "conversation_id": number,
            "turn_id": turn_id,
            "context": need(turn.get("context"), str, f"{place}: context"),
            "current_user_input": said[-1][1],
            "response": need(turn.get("response"), str, f"{place}: response"),
            "speaker_profile": profile,
            "speaker_id": speaker,
            "listener_profile": item.get("listener_profile"),
            "topic": item.get("topic"),
        }  # fmt: skip
        history = "\n".join(f"{role}: {utterance}" for role, utterance in said[:-1])
        name = f"{number}_{turn_id}" if split == "train" else file
        records.append(Record(name, history, fields, history=True, media=file))
    return records


def _utterance(entry: Any, place: str) -> tuple[str, str]:
    need(entry, dict, f"{place}: dialogue_history")
    role, said = (
        need(entry.get(key), str, f"{place}: dialogue_history: {key}") for key in ("role", "utterance")
    )
    return role, said
