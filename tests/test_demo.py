"""The embedded demo: small, trained, and right about its own sample clip."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT

from nanoemox.data.synthetic.plan import plans
from nanoemox.demo.score import measure, set_f1, weighted_f1
from nanoemox.media import Clip
from nanoemox.tasks import EMOTIONS, MINTREC2_INTENTS, POLARITIES, Parsed

DEMO = ROOT / "nanoemox" / "demo"
SHIPPED = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",
    "sample.mp4",
)


@pytest.fixture(scope="module")
def replies():
    command = [sys.executable, "-m", "nanoemox.cli", "run", "--task", "all"]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0, out.stderr
    return {reply["task"]: reply for reply in json.loads(out.stdout)}


def truth():
    """The planned answers of the sample clip; the card names the seed and the counts of the corpus."""
    seed, clips = map(int, re.search(r"seed (\d+): (\d+) clips", (DEMO / "README.md").read_text()).groups())
    words = (DEMO / "sample.srt").read_text().splitlines()[2]
    name = re.search(r"\(`(dia\w+)`\)", (DEMO / "README.md").read_text())[1]
    (plan,) = (p for p in plans(seed, clips, max(2, clips // 5))[1] if p.name == name)
    assert plan.spoken.text == words
    return plan.answers


def test_it_is_small_and_says_what_it_is():
    assert sum((DEMO / name).stat().st_size for name in SHIPPED) < 20e6
    card = (DEMO / "README.md").read_text()
    phrases = ("drawn faces and synthetic voices only", "must not be", "## Data", "## Scores", "## Limits")
    for phrase in phrases:
        assert phrase in " ".join(card.split()) or phrase in card


def test_the_sample_is_answered_in_every_task(replies):
    assert all(reply["finish"] == "stop" for reply in replies.values())
    assert replies["msa"]["labels"][0] in POLARITIES and replies["mer"]["labels"][0] in EMOTIONS
    assert replies["mir"]["labels"][0] in MINTREC2_INTENTS and replies["ov-mer"]["labels"]
    assert re.search(r"the voice .* the words .* so the person is \w+\.$", replies["eri"]["text"])
    assert all(replies["erg"]["chain"]) and len(replies["erg"]["chain"]) == 4 and replies["erg"]["reply"]


def test_the_sample_is_answered_rightly(replies):
    answers = truth()
    labels = {task: reply["labels"] for task, reply in replies.items()}
    assert labels["mer"] == labels["erg"] == [answers["emotion"]] and labels["msa"] == [answers["sentiment"]]
    assert labels["mir"] == [answers["intent"]] and set(labels["ov-mer"]) == set(answers["labels"])


def test_measures():
    assert weighted_f1(["a", "a", "b"], ["a", "b", "b"]) == pytest.approx((2 / 3 + 2 * 2 / 3) / 3)
    assert set_f1(["happy", "proud"], ["happy", "cheerful"]) == 0.5 and set_f1([], ["happy"]) == 0
    from nanoemox.demo.score import Case

    case = Case(Clip(audio=np.zeros(1)), "negative", "sad", ["sad", "hurt"], "inform", True)
    right = {"msa": ["negative"], "mer": ["sad"], "ov-mer": ["sad"], "mir": ["leave"], "erg": ["happy"]}
    answered = [
        {task: Parsed(labels=labels) for task, labels in right.items()},
        dict.fromkeys(right, Parsed()),
    ]
    got = measure([case, case], answered)
    assert got["emotion"] == 50 and got["sentiment"] == pytest.approx(200 / 3)
    assert got["intent"] == got["chain"] == 0
    assert got["open labels"] == pytest.approx(100 / 3)
