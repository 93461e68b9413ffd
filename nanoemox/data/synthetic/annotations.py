"""The corpus in the annotation files of the real data sets, all in one folder, and as manifests.

Every clip is an utterance of a dialogue and is named as AvaMERG names it. The other sets' files hold the same clips:

    train.json, v_test_v5_0.json                AvaMERG: chain of empathy, speaker's emotion
    track2/track3_train_mercaptionplus.csv, subtitle_chieng.csv     MER-Caption+: emotion set and reason
    MERR_fine_grained.json                      MERR-fine: reason, action units
    train/test_MIntRec_ann.json                 intents of the even conversations, train/test_MIntRec2_ann.json the odd
    caer_ferv39k_ann.json                       what the face shows
    crema_d_annotations.json, m3ed_annotaton.json   what a voice alone shows, of clips of their own
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..formats.manifest import CHAIN
from . import faces, texts
from .plan import Plan
from .render import throat_of

NOUNS = {"angry": "anger", "disgusted": "disgust", "fearful": "fear", "surprised": "surprise"}


def write_annotations(out: Path, train: Sequence[Plan], test: Sequence[Plan], voices: Sequence[Plan],
                      apexes: dict[str, int]) -> None:  # fmt: skip
    for plans, ava, prefix in ((train, "train.json", "train"), (test, "v_test_v5_0.json", "test")):
        _json(out / ava, _dialogues(plans))
        for parity, name in ((0, "MIntRec"), (1, "MIntRec2")):
            chosen = [p for p in plans if int(p.conversation) % 2 == parity]
            items = [
                _turn(p.spoken.text, p.answers["intent"].capitalize(), "videos", f"video/{p.name}.mp4")
                for p in chosen
            ]
            _json(out / f"{prefix}_{name}_ann.json", items)
    _json(out / "caer_ferv39k_ann.json", [
        _turn("", _noun(p.shown["face"]), "videos", f"video/{p.name}.mp4") for p in train
    ])  # fmt: skip
    alone: list[Plan] = []
    others: list[Plan] = []
    for p in voices:  # CREMA-D has no words, and no surprise
        (alone if p.turn == 0 and p.emotion != "surprised" else others).append(p)
    for file, chosen, wordy in (
        ("crema_d_annotations.json", alone, False),
        ("m3ed_annotaton.json", others, True),
    ):
        items = [
            _turn(p.spoken.text if wordy else "", _noun(p.shown["voice"]), "audios", f"audio/{p.name}.wav")
            for p in chosen
        ]
        _json(out / file, items)
    _csv(out / "track2_train_mercaptionplus.csv", ("name", "openset"),
         [(p.name, str(p.answers["labels"])) for p in train])  # fmt: skip
    _csv(
        out / "track3_train_mercaptionplus.csv",
        ("name", "reason"),
        [(p.name, p.answers["reason"]) for p in train],
    )
    _csv(
        out / "subtitle_chieng.csv",
        ("name", "chinese", "english"),
        [(p.name, "", p.spoken.text) for p in train],
    )
    _json(out / "MERR_fine_grained.json", {p.name: _merr(p, apexes[p.name]) for p in train})
    for plans, name, folder in (
        (train, "manifest.jsonl", "video"),
        (test, "manifest_test.jsonl", "test_video"),
    ):
        lines = [line for p in plans for line in _lines(p, folder)]
        (out / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _noun(emotion: str) -> str:
    return NOUNS.get(emotion, emotion)


def _turn(said: str, label: str, key: str, file: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": said}, {"role": "assistant", "content": label}]
    return {"messages": messages, key: [file]}


def _merr(p: Plan, apex: int) -> dict[str, Any]:
    units = sorted(faces.UNITS[p.shown["face"]])
    return {
        "AU_list": [f"AU{unit:02d}" for unit in units],
        "visual_prior_list": [faces.NAMES[unit] for unit in units],
        "audio_prior_list": f"the voice {texts.VOICE[p.shown['voice']]}.",
        "peak_index": str(apex),
        "peak_AU_list": [f"AU{unit:02d}" for unit in units],
        "pseu_emotion": p.emotion,
        "text": p.spoken.text,
        "smp_reason_caption": p.answers["reason"],
    }


def _dialogues(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    found: dict[str, list[Plan]] = {}
    for p in plans:
        found.setdefault(p.conversation, []).append(p)
    dialogues = []
    for number, turns in found.items():
        said: list[dict[str, Any]] = []
        written = []
        for p in turns:
            said.append({"index": len(said), "role": "speaker", "utterance": p.spoken.text})
            a = p.answers
            chain = dict(zip(("event_scenario", "speaker_emotion", "emotion_cause", "goal_to_response"),
                             (a["chain"][key] for key in CHAIN), strict=True))  # fmt: skip
            written.append({
                "turn_id": str(p.turn), "context": context(p), "dialogue_history": list(said),
                "response": a["reply"], "chain_of_empathy": chain,
            })  # fmt: skip
            said.append({"index": len(said), "role": "listener", "utterance": a["reply"]})
        speaker, thing = turns[0].speaker, turns[0].spoken.thing
        timbre = throat_of(turns[0].seed[0], speaker).timbre
        profile = {
            "age": "young",
            "gender": "female" if timbre == "high" else "male",
            "timbre": timbre,
            "ID": speaker,
        }
        listener = {"age": "young", "gender": "female", "timbre": "mid", "ID": 0}
        dialogues.append({"conversation_id": number, "speaker_profile": profile, "listener_profile": listener,
                          "topic": thing, "turns": written})  # fmt: skip
    return dialogues


def context(p: Plan) -> str:
    return f"The talk is about a {p.spoken.thing}."


def _lines(p: Plan, folder: str) -> list[dict[str, Any]]:
    """Six lines of a manifest, one a task."""
    base = {"id": p.name, "video": f"{folder}/{p.name}.mp4", "subtitle": p.spoken.text}
    a = p.answers
    given: tuple[tuple[str, dict[str, Any]], ...] = (
        ("msa", {"label": a["sentiment"]}), ("mer", {"label": a["emotion"]}), ("ov-mer", {"labels": a["labels"]}),
        ("eri", {"reason": a["reason"]}), ("mir", {"label": a["intent"]}),
        ("erg", {"chain": a["chain"], "reply": a["reply"]}),
    )  # fmt: skip
    return [{**base, "task": task, **values, "meta": p.meta} for task, values in given]


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _csv(path: Path, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
