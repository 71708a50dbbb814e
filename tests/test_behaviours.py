"""Behaviours as measures: each reads the texts that it says it reads, in every script, and says so in its unit."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from driftbook.behaviours import (
    declined,
    describe,
    measure_from,
    panel,
    pattern_measure,
    python_measure,
    sentences,
    values,
    words,
    words_measure,
)
from driftbook.behaviours.document import renewed
from driftbook.behaviours.measure import PATIENCE, Words
from driftbook.behaviours.own import read_own, trait_measures
from driftbook.behaviours.words import Reading
from driftbook.errors import DriftbookError, ParameterError

ROOT = Path(__file__).parents[1]
PAIRS = Path(os.environ.get("DRIFTBOOK_PAIRS", ROOT.parent / "shared" / "pairs"))
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
    assert len(MEASURES) == len(panel()) >= 80
    assert all(m.definition.endswith(".") and m.label and m.name.isidentifier() for m in panel())


# --------------------------------------------------------------------------------------------------------------- words


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


# ------------------------------------------------------------------------------------------------------ words measures


@pytest.mark.parametrize(
    ("word", "text", "expected"),
    [
        ("it's", "It’s late.", 1), ("it’s", "IT'S LATE", 1), ("its", "It's late.", 0), ("i", "I'm late", 0),
        ("5", "It is 3.5", 0), ("5", "5. Go", 1), ("خواهم", "می\u200cخواهم", 0), ("dogs", "the dogs' tails", 1),
        ("e.g.", "Fruit (e.g. figs)", 1), ("e.g.", "Fruit e.g.figs", 1), ("perhaps", "perhapsy", 0),
        ("what a", "What  **a** day", 1), ("well known", "a well-known day", 1), ("café", "the cafe\u0301!", 1),
        ("也许", "我也许去", 1), ("ठीक", "मैं ठीक हूँ", 1), ("ठ", "मैं ठीक हूँ", 0), ("c++", "in C++, say", 1),
        ("/colou?r/", "Colours", 1), ("ﬁne", "fine", 1),
    ],
)  # fmt: skip
def test_words_are_whole_words_in_every_script(word, text, expected):
    assert words_measure([word]).read(text, "") == expected


def test_words_are_found_whether_the_vocabulary_is_known_or_not():
    texts = [m.shows for m in panel()] + [m.shows_not for m in panel()] + [FRENCH]
    texts.append("e.g.figs 3.5 I'm می\u200cخواهم 也许")
    sought = [Words([w]) for w in {w for t in texts for w in words(t)}]
    for r in map(Reading, texts):
        assert all(s.count(r.folded) == s.count(r.folded, r.vocabulary) for s in sought)


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


def test_an_expression_that_is_always_late_is_given_up(monkeypatch):
    monkeypatch.setattr("driftbook.behaviours.measure.LIMIT_S", 0.001)
    measure = pattern_measure(r"^(a|aa)+$", name="slow")
    slow = values([measure], ["a" * (60 + i) + "!" for i in range(PATIENCE)] + ["a"], [""] * (PATIENCE + 1))
    assert declined([measure], slow) == {"slow": PATIENCE + 1}


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
        (lambda: python_measure("no_such_module:f"), "write module:function"),
        (lambda: python_measure("math:no_such_function"), "write module:function"),
        (lambda: python_measure("math:pow").read("a", ""), "python: math:pow: TypeError"),
        (lambda: python_measure("operator:concat", "number").read("a", ""), "python: operator:concat: ValueError"),
        (lambda: python_measure("operator:contains", "height"), "unit: 'height'; use one of share"),
    ],
)
def test_what_cannot_be_read_says_why(make, message):
    with pytest.raises(DriftbookError, match=message):
        make()


# ----------------------------------------------------------------------------------------------------------- sentences


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
        ("words_a_sentence", (22.13, 18.2), "words a sentence (lists aside): median 18, was 22 (-3.9)"),
        ("dashes", (0.94, 1.63, 0.5, 0.9), "dashes: 1.6 per 100 words, was 0.9 (+0.7, 0.5 to 0.9)"),
        ("bullets", (0.0, 0.004, 0.001, 0.007), "bulleted items: 0.004 an answer, was 0 (+0.004, 0.001 to 0.007)"),
    ],
)  # fmt: skip
def test_a_sentence_says_both_sides_in_the_unit_of_the_measure(name, numbers, expected):
    assert MEASURES[name].sentence(*numbers) == expected


def test_what_nobody_read_on_one_side_is_said_to_be_not_read():
    assert MEASURES["dashes"].sentence(float("nan"), 1.0, -1.0, 1.0) == "dashes: not read"


def test_a_value_is_described_in_its_unit():
    assert describe(0.333, "share") == "33% of answers"
    assert describe(1.63, "rate") == "1.6 per 100 words"
    assert describe(2, "number") == "2 an answer"
    assert [describe(282, "words"), describe(9.1, "grade")] == ["282 words", "9.1"]


# ----------------------------------------------------------------------------------------------------- single measures


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("has_bold", "```\nx = 2 ** 3 ** 4\n```", 0), ("exclaims", "```\nif x != 1\n```", 0),
        ("ends_with_question", "Is it so?**", 1), ("ends_with_question", "你好吗？", 1),
        ("loops", "no " * 8, 1), ("loops", "no no no", 0), ("is_empty", "", 1), ("is_empty", " \n", 1),
        ("no_end_mark", "", 0), ("opens_with_i", "I.e. this one", 0), ("praises_question", "What a day it was.", 0),
        ("refuses", "You cannot park there.", 0), ("refuses", "I’m sorry, I can’t share that.", 1),
        ("repeats_prompt", PROMPT.upper(), 1), ("has_years", "It weighs 1500.5 g and $1999", 0),
        ("has_heading", "# Set the size\nsize = 3\n# Show\nprint(size)", 0),
        ("has_heading", "# Plan\nThe price (all in) = 3.", 1), ("headings", "# A\n\ntext\n## B\n\ntext", 2),
        ("offers_more_help", "It is done. If you want more heat, add chili.", 0),
        ("offers_more_help", "It is done. Don't hesitate to ask.", 1),
        ("switches_language", FRENCH, math.nan), ("shouts", "The NASA and USA", 0),
        ("gibberish", "Rhythm and strengths of the backlight.", 0), ("has_italics", "snake_case_name and 2*3*4", 0),
        ("dashes", "Bring:\n- water\n- bread", 0), ("dashes", "Bring:\n  – water", 0), ("dashes", "a b - c d", 25),
        ("has_parentheses", "Call it:\n```\nprint(hello)\n```", 0), ("has_parentheses", "See [it](there), f(all).", 0),
        ("has_parentheses", "北京（Beijing）", 1), ("has_parentheses", "Go (early).", 1),
        ("has_formula", "She pays 2 * $50 = $100.", 0), ("has_formula", "Set $A=1 and $B=2", 0),
        ("has_formula", "So $x = 2$.", 1), ("has_formula", "So $2x^2$ grows.", 1),
        ("commas", "Salt, milk.\n```\nf(a, b, c)\n```", 50), ("is_certain", "Certain types of tea.", 0),
        ("polite", "Thanks to rain, it grows. Thank-you notes.", 1), ("polite", "Thanks to rain, it grows.", 0),
        ("names_sources", "Salt according to the package.", 0), ("names_sources", "A study by Smith.", 1),
        ("both_sides", "Grill both sides.", 0),
    ],
)  # fmt: skip
def test_the_line_of_a_measure(name, text, expected):
    np.testing.assert_equal(read(name, text), expected)


def test_a_language_switch_is_read_of_a_long_prompt():
    assert read("switches_language", FRENCH, FRENCH) == 0
    assert read("switches_language", "It is a city by the river.", FRENCH) == 1


def test_sentiment_follows_vader():
    sentences = [
        "I love this wonderful place.", "It is not good at all.", "This is a terrible disaster.", "The box is here.",
        "A nice day, but a bad end.", "They failed and lost hope.", "Great food and friendly staff.", "It was fine.",
        "He doesn't hate it.", "A sad and painful loss.", "What a happy surprise.", "The train leaves at noon.",
    ]  # fmt: skip
    vader = SentimentIntensityAnalyzer()
    theirs = [vader.polarity_scores(s)["compound"] for s in sentences]
    assert np.corrcoef([read("sentiment", s) for s in sentences], theirs)[0, 1] > 0.95


# ------------------------------------------------------------------------------------------------- behaviours of users


def test_the_example_and_the_trait_files_are_read():
    own = {m.name: m for m in read_own(["params/behaviours/*.yml"], ROOT)}
    assert own["names_the_weather"].read("It is snowing.", "") == 1
    assert own["opens_with_well"].read("Well, no.", "") == 1 and own["opens_with_well"].read("All is well.", "") == 0
    assert own["sentences_in_brackets"].read("[a] [b](c)", "") == 1
    traits = {m.name: m for m in trait_measures(["params/traits/commitment_strength.json"], ROOT)}
    assert traits["trait_commitment_strength"].read("Do it. Go with tea.", "") == pytest.approx(100 * 2 / 5)
    assert traits["trait_commitment_strength_opposite"].read("Perhaps tea", "") == 50


def test_a_function_of_the_user_is_a_measure(tmp_path, monkeypatch):
    source = "def vowels(text, prompt):\n    return sum(c in 'aeiou' for c in text) or None\n"
    (tmp_path / "of_users.py").write_text(source)
    (tmp_path / "a.yml").write_text("{name: vowels, label: vowels, python: 'of_users:vowels', unit: number}")
    monkeypatch.syspath_prepend(tmp_path)
    (measure,) = read_own(["a.yml"], tmp_path)
    np.testing.assert_equal(values([measure], ["aim", "hm"], ["", ""]), [[2], [np.nan]])
    assert measure_from(measure.spec) == measure


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "own.yml: not YAML"),
        ("", "own.yml: holds no behaviour"),
        ("- 3", "own.yml: behaviour 1: is 3; write keys"),
        ("{name: a, label: b, word: [c]}", "behaviour a: word: no such key"),
        ("{name: a, label: b}", "behaviour a: words: write exactly one of"),
        ("{name: a, label: b, words: [c], pattern: d}", "behaviour a: words, pattern: write exactly one of"),
        ("{name: a, words: [c]}", "behaviour a: label: is None; write text"),
        ("{name: a b, label: b, words: [c]}", "behaviour a b: name: 'a b'; use letters"),
        ("{name: hedges, label: b, words: [c]}", "behaviour hedges: name: stands in the catalogue already"),
        ("[{name: a, label: b, words: [c]}, {name: a, label: b, words: [c]}]", "name: stands in .*own.yml already"),
        ("{name: a, label: b, words: c}", "behaviour a: words: 'c'; give a list"),
        ("{name: a, label: b, pattern: '('}", "behaviour a: pattern: .*correct the regular expression"),
        ("{name: a, label: b, words: [c], place: middle}", "behaviour a: place: 'middle'; use one of"),
        ("{name: a, label: b, words: [c], unit: grade}", "behaviour a: unit: 'grade'; words and patterns"),
        ("{name: a, label: b, python: 'nowhere:f'}", "behaviour a: python: 'nowhere:f'"),
        ("{name: a, label: b, python: 'math:sqrt', place: start}", "behaviour a: place: a function reads"),
    ],
)
def test_a_file_that_cannot_be_read_names_behaviour_and_key(text, message, tmp_path):
    (tmp_path / "own.yml").write_text(text)
    with pytest.raises(ParameterError, match=message):
        read_own(["own.yml"], tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ParameterError, match="no such file under"):
        read_own(["*.yml"], tmp_path)


def test_the_page_lists_the_catalogue_as_it_is():
    page = (ROOT / "docs/behaviours.md").read_text(encoding="utf-8")
    assert page == renewed(page), "run python -m driftbook.behaviours.document"


# ------------------------------------------------------------------------------------------------ against real answers

# What facts.csv calls it: the measure, or measures of which an answer shows any.
FACTS = {
    "has a bulleted list": "has_bulleted_list", "has a numbered list": "has_numbered_list",
    "has a markdown heading": "has_heading", "has bold text": "has_bold", "has a code block": "has_code_block",
    "has several paragraphs": "has_paragraphs", "has an exclamation mark": "exclaims", "has a question mark": "asks",
    "ends with a question": "ends_with_question", "has digits": "has_digits", "has quotation marks": "has_quotes",
    "has an emoji": "has_emoji", "opens with praise of the question": "praises_question",
    "opens with sure, certainly, of course": "opens_with_sure", "offers more help at its end": "offers_more_help",
    "says sorry or I cannot": "apologizes refuses", "speaks of itself as an AI": "speaks_as_ai",
    "says I, me or my": "says_i", "says you or your": "says_you", "hedges": "hedges",
    "says however or but": "contrasts", "says in summary, in conclusion, overall": "sums_up",
    "says e.g. or i.e.": "eg_ie", "has no end mark": "no_end_mark", "words": "length_words",
    "sentences": "length_sentences", "words a sentence": "words_a_sentence", "letters a word": "letters_a_word",
    "different words of the first hundred": "variety",
}  # fmt: skip
# Other rules than the facts': list items are sentences, and marks inside blocks of code are none of prose.
OTHERWISE = {"sentences", "words a sentence", "different words of the first hundred"}
IN_CODE = {"has a markdown heading", "has an exclamation mark", "has a question mark", "has quotation marks"}


@pytest.mark.skipif(not (PAIRS / "facts.csv").is_file(), reason=f"no real pairs in {PAIRS}; set DRIFTBOOK_PAIRS")
@pytest.mark.parametrize("table", ["alpaca-neft", "claude21-concise", "gpt4-version", "llama2-refuses-all"])
def test_measures_agree_with_plain_counting(table):
    facts = pd.read_csv(PAIRS / "facts.csv").query("table == @table").set_index("measure")
    assert set(facts.index) == set(FACTS)
    answers = pd.read_parquet(PAIRS / f"{table}.parquet")
    for fact, names in FACTS.items():
        read = values([MEASURES[n] for n in names.split()], answers.text.tolist(), answers.prompt.tolist()).max(axis=1)
        share = facts.unit[fact] == "share"
        sides = [read[answers.side == side] for side in ("base", "intervention")]
        base, changed = ((np.nanmean if share else np.nanmedian)(side) for side in sides)
        was, now = facts.base[fact], facts.changed[fact]
        if fact not in OTHERWISE and not (fact in IN_CODE and facts.base["has a code block"] > 0.1):
            assert [base, changed] == pytest.approx([was, now], abs=0.06 if share else 0.06 * was), fact
        if facts.p[fact] < 1e-3 and abs(now - was) > (0.05 if share else 0.1 * was):
            assert (changed > base) == (now > was), fact
