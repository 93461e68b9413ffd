"""The annotation files of the corpus, in the formats of the real data sets, and its manifests.

Every clip is an utterance of a dialogue and is named as in AvaMERG. The files of the other sets are about the
same clips:

    train.json, v_test_v5_0.json        AvaMERG: chain of empathy, emotion of the speaker
    track2/track3_train_mercaptionplus.csv, subtitle_chieng.csv     MER-Caption+: emotion set and reason
    MERR_fine_grained.json              MERR-fine: reason, action units
    train/test_MIntRec_ann.json         intents of the even conversations
    train/test_MIntRec2_ann.json        intents of the odd conversations
    caer_ferv39k_ann.json               emotion that the face shows
    crema_d_annotations.json, m3ed_annotaton.json   emotion of the voice, in clips without pictures
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..formats.manifest_line import CHAIN
from . import faces, texts
from .plan import Plan
from .render import throat_of

AVAMERG_CHAIN = ("event_scenario", "speaker_emotion", "emotion_cause", "goal_to_response")  # in CHAIN's order
NOUNS = {"angry": "anger", "disgusted": "disgust", "fearful": "fear", "surprised": "surprise"}


def write_annotations(
    out: Path,
    train: Sequence[Plan],
    test: Sequence[Plan],
    voices: Sequence[Plan],
    apexes: dict[str, int],
) -> None:
    """Write every annotation file and both manifests into the folder.

    Args:
        out: the corpus folder.
        train, test: the clips of both parts, the turns of a conversation together.
        voices: voices without pictures.
        apexes: name of a training clip -> the frame in which the face is at its apex.
    """
    for plans, file in ((train, "train.json"), (test, "v_test_v5_0.json")):
        _write_json(out / file, _dialogues(plans))
    for plans, prefix in ((train, "train"), (test, "test")):
        for parity, name in ((0, "MIntRec"), (1, "MIntRec2")):
            items = [_intent_item(plan) for plan in plans if int(plan.conversation) % 2 == parity]
            _write_json(out / f"{prefix}_{name}_ann.json", items)
    faces_shown = [
        _conversation("", _noun(plan.shown["face"]), "videos", f"video/{plan.name}.mp4") for plan in train
    ]
    _write_json(out / "caer_ferv39k_ann.json", faces_shown)
    _write_voices(out, voices)
    labels = [(plan.name, str(plan.answers["labels"])) for plan in train]
    reasons = [(plan.name, plan.answers["reason"]) for plan in train]
    words = [(plan.name, "", plan.spoken.text) for plan in train]
    _write_csv(out / "track2_train_mercaptionplus.csv", ("name", "openset"), labels)
    _write_csv(out / "track3_train_mercaptionplus.csv", ("name", "reason"), reasons)
    _write_csv(out / "subtitle_chieng.csv", ("name", "chinese", "english"), words)
    _write_json(out / "MERR_fine_grained.json", {plan.name: _merr(plan, apexes[plan.name]) for plan in train})
    for plans, file, folder in (
        (train, "manifest.jsonl", "video"),
        (test, "manifest_test.jsonl", "test_video"),
    ):
        lines = [line for plan in plans for line in _manifest_lines(plan, folder)]
        (out / file).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_voices(out: Path, voices: Sequence[Plan]) -> None:
    """The voices as CREMA-D, which has neither words nor surprise, and the others as M3ED."""
    items: dict[str, list[dict[str, Any]]] = {"crema_d_annotations.json": [], "m3ed_annotaton.json": []}
    for plan in voices:
        as_crema_d = plan.turn == 0 and plan.emotion != "surprised"
        file = "crema_d_annotations.json" if as_crema_d else "m3ed_annotaton.json"
        words = "" if as_crema_d else plan.spoken.text
        item = _conversation(words, _noun(plan.shown["voice"]), "audios", f"audio/{plan.name}.wav")
        items[file].append(item)
    for file, written in items.items():
        _write_json(out / file, written)


def _noun(emotion: str) -> str:
    return NOUNS.get(emotion, emotion)


def _conversation(subtitle: str, label: str, key: str, file: str) -> dict[str, Any]:
    """An item of conversation JSON (docs/data.md section 1)."""
    messages = [{"role": "user", "content": subtitle}, {"role": "assistant", "content": label}]
    return {"messages": messages, key: [file]}


def _intent_item(plan: Plan) -> dict[str, Any]:
    intent = plan.answers["intent"].capitalize()
    return _conversation(plan.spoken.text, intent, "videos", f"video/{plan.name}.mp4")


def _merr(plan: Plan, apex: int) -> dict[str, Any]:
    """An entry of MERR-fine (docs/data.md section 3)."""
    units = sorted(faces.UNITS[plan.shown["face"]])
    codes = [f"AU{unit:02d}" for unit in units]
    return {
        "AU_list": codes,
        "visual_prior_list": [faces.NAMES[unit] for unit in units],
        "audio_prior_list": f"the voice {texts.VOICE[plan.shown['voice']]}.",
        "peak_index": str(apex),
        "peak_AU_list": codes,
        "pseu_emotion": plan.emotion,
        "text": plan.spoken.text,
        "smp_reason_caption": plan.answers["reason"],
    }


def _dialogues(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """The conversations of AvaMERG (docs/data.md section 4)."""
    conversations: dict[str, list[Plan]] = {}
    for plan in plans:
        conversations.setdefault(plan.conversation, []).append(plan)
    return [_dialogue(number, turns) for number, turns in conversations.items()]


def _dialogue(number: str, plans: Sequence[Plan]) -> dict[str, Any]:
    history: list[dict[str, Any]] = []
    turns = []
    for plan in plans:
        answers = plan.answers
        history.append({"index": len(history), "role": "speaker", "utterance": plan.spoken.text})
        chain = [answers["chain"][key] for key in CHAIN]
        turn = {
            "turn_id": str(plan.turn),
            "context": context(plan),
            "dialogue_history": list(history),
            "response": answers["reply"],
            "chain_of_empathy": dict(zip(AVAMERG_CHAIN, chain, strict=True)),
        }
        turns.append(turn)
        history.append({"index": len(history), "role": "listener", "utterance": answers["reply"]})
    first = plans[0]
    timbre = throat_of(first.seed[0], first.speaker).timbre
    speaker = {
        "age": "young",
        "gender": "female" if timbre == "high" else "male",
        "timbre": timbre,
        "ID": first.speaker,
    }
    listener = {"age": "young", "gender": "female", "timbre": "mid", "ID": 0}
    return {
        "conversation_id": number,
        "speaker_profile": speaker,
        "listener_profile": listener,
        "topic": first.spoken.thing,
        "turns": turns,
    }


def context(plan: Plan) -> str:
    """The situation of a dialogue, in words."""
    return f"The talk is about a {plan.spoken.thing}."


def _manifest_lines(plan: Plan, folder: str) -> list[dict[str, Any]]:
    """Six lines of a manifest, one per task (docs/data.md section 8)."""
    clip = {"id": plan.name, "video": f"{folder}/{plan.name}.mp4", "subtitle": plan.spoken.text}
    answers = plan.answers
    by_task: dict[str, dict[str, Any]] = {
        "msa": {"label": answers["sentiment"]},
        "mer": {"label": answers["emotion"]},
        "ov-mer": {"labels": answers["labels"]},
        "eri": {"reason": answers["reason"]},
        "mir": {"label": answers["intent"]},
        "erg": {"chain": answers["chain"], "reply": answers["reply"]},
    }
    return [{**clip, "task": task, **values, "meta": plan.meta} for task, values in by_task.items()]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _write_csv(path: Path, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
