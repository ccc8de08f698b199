"""Sentences with a key: they are strings, and say by what they are translated."""

import copy
import json
import pickle
import re
from pathlib import Path

import pytest

from skipstone.core.step.clock import Grid
from skipstone.core.step.method import Method
from skipstone.core.step.policies import Threshold, Warmup
from skipstone.core.step.predictors import Linear
from skipstone.core.step.report import messages
from skipstone.core.step.run import Run
from skipstone.core.texts import Text, said, translatable

ROOT = Path(__file__).resolve().parents[2]
# folders whose code makes reports and states of nodes
SPEAKING = (
    "core/step",
    "core/compile_options.py",
    "patch/step",
    "patch/blocks",
    "patch/compile",
    "core/memo",
    "patch/memo",
)


def test_it_is_its_english_sentence():
    text = messages.too_few(4)
    assert text == str(text) == json.loads(json.dumps(text))
    assert text.startswith("4 steps are too few")
    assert text.as_dict() == {"text": text, "key": "too_few_steps", "values": {"steps": 4, "few": messages.FEW}}


def test_a_value_may_be_a_text_or_a_list_of_them():
    told = messages.modalities({messages.VIDEO: 0.4, messages.AUDIO: 0.1, "other": 0.1})
    assert told is not None
    assert told == "the video is the hardest to predict (error 40.0%; audio 10.0%, other 10.0%): check it first"
    values = told.as_dict()["values"]
    assert values["name"] == messages.VIDEO.as_dict()
    assert [one["values"]["name"] for one in values["others"]] == [messages.AUDIO.as_dict(), "other"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda text: pickle.loads(pickle.dumps(text))])
def test_a_copy_is_translated_too(copied):
    text = messages.outlook(52.0)
    assert copied(text) == text
    assert copied(text).as_dict() == text.as_dict()
    assert text.capital().as_dict() == {**text.as_dict(), "text": text.capital()}


def test_two_texts_have_two_keys():
    with pytest.raises(ValueError, match="the key outlook has another text"):
        Text("outlook", "another one")


def test_an_exceptions_message_stays_a_text():
    assert said(ValueError(messages.NOISE)) is messages.NOISE
    assert said(ValueError("a number")) == "a number"
    assert messages.UNIDENTIFIED.of(error=ValueError("no file")).values == {"error": "no file"}


def test_only_texts_can_be_translated():
    assert translatable(["", "its own words", messages.NOISE, messages.NOISE]) == [messages.NOISE.as_dict()]


def test_a_report_names_what_its_sentences_are_translated_by():
    grid = Grid.of([1 - i / 20 for i in range(21)])
    run = Run(Method("Cache", "", (Warmup(2), Threshold(0.0)), Linear()), grid, "euler")
    for sigma in grid.sigmas[:-1]:
        run.tick(sigma)
        run.decide(["slot"])
    told = json.loads(json.dumps(run.close(finished=True).as_dict()))
    texts = {text["text"]: text for text in told["texts"]}
    assert {told["advice"], *told["notes"]} == {*texts}
    (note,) = told["notes"]
    reasons = texts[note]["values"]["reasons"]
    assert {one["values"]["reason"]["text"]: one["values"]["count"] for one in reasons} == told["reasons"]


def speaking():
    return [
        file for part in SPEAKING for file in ([ROOT / part] if part.endswith(".py") else (ROOT / part).rglob("*.py"))
    ]


def test_no_sentence_is_said_without_a_key():
    """Whoever adds one finds this: a Chinese reader would see it in English."""
    spoken = re.compile(
        r"(?:\.note|\.tell|show_text|\bsay|NotCacheable|Unavailable|Unreachable|refused)\(\s*f?[\"']|\.trouble\([^,()]+,\s*f?\""
        r"|(?:hint|problem|note|UnexpectedForward)\s*(?:=|\()\s*f?\"\w"
    )
    assert [(file.name, found[0]) for file in speaking() for found in spoken.finditer(file.read_text())] == []
