"""From an answer's text to labels, chain and reply."""

import pytest

from nanoemox.errors import UsageError
from nanoemox.tasks import EMOTIONS, MINTREC2_INTENTS, TASKS, check_labels, split_list


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("The person is most likely happy.", ["happy"]),
        ("Not happy at all, but SAD", ["sad"]),
        ("The emotion is anger.", ["angry"]),
        ("unhappy", []),
        ("", []),
    ],
)
def test_emotion(text, labels):
    assert TASKS["mer"].parse(text, EMOTIONS).labels == labels


def test_intent_keeps_the_candidates_spelling_and_prefers_the_longer():
    assert TASKS["mir"].parse("Ask for help", MINTREC2_INTENTS).labels == ["ask for help"]
    assert TASKS["mir"].parse("ask for help.", ["help", "Ask for help"]).labels == ["Ask for help"]
    assert TASKS["msa"].parse("clearly Positive", TASKS["msa"].labels).labels == ["positive"]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (
            "The emotional state of the person is: happy, quite calm and proud.",
            ["happy", "quite calm", "proud"],
        ),
        ("[happy, sad]", ["happy", "sad"]),
        ("The person feels anxious.", ["anxious"]),
        ("sad, sad", ["sad"]),
        ("<think>hm</think><answer>Happy; sad</answer>", ["happy", "sad"]),
        ("1. happy\n2. very sad\n- calm", ["happy", "very sad", "calm"]),
        ("[Recogn_OV] She expresses joy, relief, and pride!", ["joy", "relief", "pride"]),
        (
            "The emotions of the person are: calm, feel inadequate, **sad**.",
            ["calm", "feel inadequate", "sad"],
        ),
        ("高兴、悲伤", ["高兴", "悲伤"]),
        ("", []),
    ],
)
def test_open_labels(text, labels):
    assert TASKS["ov-mer"].parse(text, ()).labels == labels


def test_labels_of_any_script_and_no_labels():
    assert TASKS["mer"].parse("他很高兴。", ["高兴", "悲伤"]).labels == ["高兴"]
    assert TASKS["mer"].parse("it is C++", ["C", "C++"]).labels == ["C++"]
    assert TASKS["mer"].parse("happy", []).labels == []
    assert check_labels([" a ", ""]) == ["a"] and check_labels(None) is None
    for wrong in ("happy", [], [" "]):
        with pytest.raises(UsageError, match="labels must be"):
            check_labels(wrong)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("['happy', 'very sad']", ["happy", "very sad"]),
        ("[]", []),
        ("happy]", ["happy]"]),
        ("[happy, sad", ["[happy", "sad"]),
        ("[a, b] more", ["[a", "b] more"]),
        (" [ proud ]  ", ["proud"]),
        ("happy; sad", ["happy; sad"]),
        ('["it\'s fine"]', ["it's fine"]),
    ],
)
def test_split_list(text, items):
    assert split_list(text) == items


LINES = [
    "Firstly, the event scenario is: a missed train",
    "Secondly, the emotion of the speaker is anxious",
    "Thirdly, the emotion cause is being late",
    "Fourthly, the goal to response is to calm the speaker",
]


def test_chain_of_empathy():
    parsed = TASKS["erg"].parse("<think>" + "\n".join(LINES) + "</think>\n Is there a later train?", ())
    assert (
        parsed.chain == LINES and parsed.reply == "Is there a later train?" and parsed.labels == ["anxious"]
    )


def test_a_missing_line_is_none():
    parsed = TASKS["erg"].parse("<think>" + "\n".join(LINES[:1] + LINES[2:]) + "</think>\n Oh.", ())
    assert parsed.chain == [LINES[0], None, LINES[2], LINES[3]] and parsed.labels == []


def test_lines_without_ordinals_count_by_position():
    assert TASKS["erg"].parse("<think>a\nb\n</think>c", ()).chain == ["a", "b", None, None]


def test_a_reply_without_thought_or_an_unfinished_thought():
    plain = TASKS["erg"].parse("I am sorry.", ())
    assert plain.reply == "I am sorry." and plain.chain is None
    spoken = TASKS["erg"].parse("The emotion of the speaker is Grateful. Welcome!", ())
    assert spoken.labels == ["grateful"]
    unopened = TASKS["erg"].parse("\n".join(LINES) + "</think>", ())
    assert unopened.chain == LINES and unopened.reply is None
    longer = TASKS["erg"].parse("<think>First, a\nand more\nSecond, b</think>c", ())
    assert longer.chain == ["First, a and more", "Second, b", None, None]
    cut = TASKS["erg"].parse("<think>" + LINES[0], ())
    assert cut.reply is None and cut.chain == [LINES[0], None, None, None]
