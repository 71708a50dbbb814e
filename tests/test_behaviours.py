"""Behaviours as measures: each reads the texts that it says it reads, in every script, and says so in its unit."""

import json
import math

import numpy as np
import pytest

from driftbook.behaviours import declined, measure_from, panel, pattern_measure, sentences, values, words, words_measure
from driftbook.errors import DriftbookError

PROMPT = "What is the capital of France?"
MEASURES = {m.name: m for m in panel()}


def read(name, text, prompt=PROMPT):
    return MEASURES[name].read(text, prompt)


@pytest.mark.parametrize("measure", panel(), ids=lambda m: m.name)
def test_a_measure_is_read_on_its_own_texts(measure):
    more, less = measure.read(measure.shows, PROMPT), measure.read(measure.shows_not, PROMPT)
    if measure.unit == "share":
        assert (more, less) == (1.0, 0.0)
    else:
        assert more > less
    assert measure_from(json.loads(json.dumps(dict(measure.spec)))) is measure


def test_names_are_unique_and_definitions_are_sentences():
    assert len(MEASURES) == len(panel()) >= 50
    assert all(m.definition.endswith(".") and m.label and m.name.isidentifier() for m in panel())


# ---------------------------------------------------------------------------------------------------------------- words


def test_words_follow_unicode():
    assert words("It’s e.g. 3.5 cats, well-known") == ["it's", "e.g.", "3.5", "cats", "well", "known"]
    assert words("U.S. I'M") == ["u.s.", "i'm"]
    assert words("也许是的") == ["也", "许", "是", "的"]
    assert words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]  # vowel signs belong to their word
    assert words("مرحبا بالعالم") == ["مرحبا", "بالعالم"]
    assert words("cafe\u0301") == words("café") == ["café"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ask Dr. Smith, e.g. today. He knows.", ["Ask Dr. Smith, e.g. today.", "He knows."]),
        ('He said "No!" Then he left.', ['He said "No!"', "Then he left."]),
        ("Bring:\n1. Water\n- **Bread**\n\n## End\nGo.", ["Bring:", "Water", "**Bread**", "End", "Go."]),
        ("A line\nthat goes on.", ["A line that goes on."]),
        ("See:\n```python\nx = 1. Y\n```\nDone.", ["See:", "Done."]),
        ("也许是。你好吗？好！", ["也许是。", "你好吗？", "好！"]),
        ("मैं ठीक हूँ। आप कैसे हैं?", ["मैं ठीक हूँ।", "आप कैसे हैं?"]),
        ("هل أنت بخير؟ نعم.", ["هل أنت بخير؟", "نعم."]),
        ("", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_sizes_that_need_words_are_declined_without_spaces():
    text = "这是一个很长的答案。我们不知道。"
    assert math.isnan(read("length_words", text)) and math.isnan(read("words_a_sentence", text))
    assert read("length_sentences", text) == 2 and read("characters", text) == len(text)


FRENCH = (
    "La capitale de la France est Paris, une ville que les voyageurs aiment depuis toujours. Elle se trouve au bord de "
    "la Seine et compte plus de deux millions d'habitants, qui parlent surtout le français."
)


@pytest.mark.parametrize("text", [FRENCH, "这是一个很长的答案。", "मैं ठीक हूँ।", "Привет, как дела?", "هل أنت بخير؟"])
def test_measures_of_english_decline_other_languages(text):
    assert math.isnan(read("opens_with_sure", text))
    assert read("has_bold", text) == 0


def test_measures_of_english_read_short_and_empty_texts_and_answers_about_other_languages():
    about = "Bonjour means hello in French, and it is used in the morning. You can also say salut to your friends."
    assert [read("opens_with_sure", t) for t in ("", "Paris", about)] == [0, 0, 0]


def test_marks_without_end_are_read():
    text = "a" + "\u0301\u0323" * 50_000
    assert np.isfinite(values([MEASURES["length_words"]], [text], [""])).all()


# ------------------------------------------------------------------------------------------------------- words measures


@pytest.mark.parametrize(
    ("word", "text", "expected"),
    [
        ("it's", "It’s late.", 1), ("it’s", "IT'S LATE", 1), ("its", "It's late.", 0), ("i", "I'm late", 0),
        ("e.g.", "Fruit (e.g. figs)", 1), ("e.g.", "Fruit e.g.figs", 1), ("perhaps", "perhapsy", 0),
        ("what a", "What  **a** day", 1), ("well known", "a well-known day", 1), ("café", "the cafe\u0301!", 1),
        ("也许", "我也许去", 1), ("ठीक", "मैं ठीक हूँ", 1), ("ठ", "मैं ठीक हूँ", 0), ("c++", "in C++, say", 1),
        ("/colou?r/", "Colours", 1), ("ﬁne", "fine", 1),
    ],
)  # fmt: skip
def test_words_are_whole_words_in_every_script(word, text, expected):
    assert words_measure([word]).read(text, "") == expected


def test_words_are_counted_in_their_place_and_unit():
    text = "Perhaps it rains. Perhaps not, perhaps snow."
    counted = {
        (place, unit): words_measure(["perhaps", "it"], place, unit).read(text, "")
        for place in ("anywhere", "opening", "closing", "start")
        for unit in ("share", "number", "rate")
    }
    assert [counted[p, "number"] for p in ("anywhere", "opening", "closing", "start")] == [4, 2, 2, 1]
    assert counted["anywhere", "rate"] == pytest.approx(100 * 4 / 7)
    assert counted["closing", "rate"] == pytest.approx(100 * 2 / 4)
    assert all(v == 1 for (_, unit), v in counted.items() if unit == "share")


def test_a_longer_phrase_is_counted_once():
    assert words_measure(["sorry", "i am sorry"], unit="number").read("I am sorry. Sorry!", "") == 2


def test_measures_are_rebuilt_from_their_spec():
    for made in (
        words_measure(["perhaps", "/may(be)?/"], "closing", "rate", name="doubt", label="words of doubt"),
        words_measure(["perhaps"]),
        pattern_measure(r"\b[Pp]erhaps\b", unit="number"),
    ):
        again = measure_from(json.loads(json.dumps(dict(made.spec))))
        assert again == made
        text = "It may be. Perhaps, maybe."
        assert again.read(text, "") == made.read(text, "") > 0


def test_a_catastrophic_expression_is_declined_not_awaited():
    measure = pattern_measure(r"^(a|aa)+$", name="slow")
    slow = values([measure], ["a" * 60 + "!", "a"], ["", ""])
    assert np.isnan(slow[0, 0]) and slow[1, 0] == 1
    assert declined([measure], slow) == {"slow": 1}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: words_measure([]), "give a list of words"),
        (lambda: words_measure(["/(/"]), "correct the regular expression"),
        (lambda: words_measure(["a"], "middle"), "place: 'middle'; use one of anywhere"),
        (lambda: words_measure(["a"], unit="grade"), "counted as share, number or rate"),
        (lambda: measure_from({"kind": "panel", "name": "nothing"}), "no behaviour is named 'nothing'"),
        (lambda: measure_from({"kind": "magic"}), "kind is 'magic'; use panel"),
        (lambda: measure_from({"kind": "words"}), "measure of kind words: 'words'"),
        (lambda: values(panel(), ["a"], []), "give one prompt an answer"),
    ],
)
def test_what_cannot_be_read_says_why(make, message):
    with pytest.raises(DriftbookError, match=message):
        make()


# ------------------------------------------------------------------------------------------------------------ sentences


@pytest.mark.parametrize(
    ("name", "numbers", "expected"),
    [
        ("ends_with_question", (0.053, 0.333, 0.19, 0.37),
         "ends with a question: 33% of answers, was 5% (+28 points, 19 to 37)"),
        ("ends_with_question", (0.0004, 0.0401), "ends with a question: 4% of answers, was 0.04% (+4 points)"),
        ("ends_with_question", (0.333, 0.334), "ends with a question: 33.4% of answers, was 33.3% (+0.1 points)"),
        ("ends_with_question", (0.33, 0.33, -0.1, 0.1),
         "ends with a question: 33% of answers, was 33% (0 points, -10 to 10)"),
        ("length_words", (321, 282, -52, -30), "length: median 282 words an answer, was 321 (-39, -52 to -30)"),
        ("length_sentences", (12, 9.5), "length: median 9.5 sentences an answer, was 12 (-2.5)"),
        ("words_a_sentence", (22.13, 18.2), "words a sentence: median 18, was 22 (-3.9)"),
        ("dashes", (0.94, 1.63, 0.5, 0.9), "dashes: 1.6 per 100 words, was 0.9 (+0.7, 0.5 to 0.9)"),
        ("bullets", (0.0, 0.004, 0.001, 0.007), "bulleted items: 0.004 an answer, was 0 (+0.004, 0.001 to 0.007)"),
    ],
)  # fmt: skip
def test_a_sentence_says_both_sides_in_the_unit_of_the_measure(name, numbers, expected):
    assert MEASURES[name].sentence(*numbers) == expected
