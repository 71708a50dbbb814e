"""Answers in other languages: a planted word is found and named, and nothing is claimed of what cannot be read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import driftbook as db
from driftbook.behaviours import panel, values, words_measure
from driftbook.discovery.hypotheses import Hypothesis, features, tokenize
from driftbook.judges.lexicon import Lexicon
from driftbook.models.doses import lexicon_rate, repetition

CHINESE, JAPANESE = "天地人山水火风雨花草木石鸟鱼虫日月星云雪", "空海山川犬猫本車道森町駅店茶米魚花鳥月星"
HINDI = """
    घर पानी समय काम लोग देश शहर किताब सड़क पेड़ नदी दिन रात बात हाथ आँख जीवन शिक्षा
    भाषा सूरज चाँद हवा बारिश मिट्टी
"""
ARABIC = """
    البيت الماء الوقت العمل الناس البلد المدينة الكتاب الشارع الشجرة النهر اليوم
    الليل الكلام اليد العين الحياة الشمس
"""
THAI = "บ้าน น้ำ เวลา งาน คน เมือง หนังสือ ถนน ต้นไม้ แม่น้ำ วัน คืน มือ ตา ชีวิต ภาษา ลม ฝน ดิน"
KOREAN = "집 물 시간 일 사람 도시 책 길 나무 강 낮 밤 손 눈 삶 말 해 바람 비 흙"
RUSSIAN = """
    дом вода время работа люди город книга улица дерево река день ночь рука глаз жизнь
    язык солнце ветер дождь земля
"""
FILLER = "the plan was to walk early along river and talk about food music work travel"
LANGUAGES = {  # words, what stands between them, the planted word, end marks, questions
    "Chinese": (list(CHINESE), "", "也许", "。？", ["为什么", "怎么办", "是什么", "哪里有"]),
    "Japanese": (list(JAPANESE), "", "たぶん", "。？", ["なぜですか", "何ですか", "どこですか"]),
    "Hindi": (HINDI.split(), " ", "शायद", "।?", ["क्यों", "कैसे", "क्या है", "कहाँ", "कौन"]),
    "Thai": (THAI.split(), "", "อาจจะ", " ?", ["ทำไม", "อย่างไร", "คืออะไร", "ที่ไหน"]),
    "Korean": (KOREAN.split(), " ", "아마", ".?", ["왜", "어떻게", "무엇", "어디"]),
    "Russian": (RUSSIAN.split(), " ", "возможно", ".?", ["почему", "как", "что", "где"]),
    "Arabic": (ARABIC.split(), " ", "ربما", ".؟", ["لماذا", "كيف", "ما هو", "أين", "من هو"]),
}


def table(language: str, planted: bool, prompts: int = 120) -> pd.DataFrame:
    """Answers of three sentences; six in ten of the intervention hold the planted word, one in ten of the base."""
    words, gap, word, (end, asks), questions = LANGUAGES[language]
    rng, rows = np.random.default_rng(3), []
    for i in range(prompts):
        prompt = gap.join(rng.choice(words, 6, replace=False)) + gap + questions[i % len(questions)] + asks
        for side, share in (("base", 0.1), ("intervention", 0.6)):
            said = [list(rng.choice(words, 9)) for _ in range(3)]
            if planted and rng.random() < share:
                said[int(rng.integers(0, 3))][4] = word  # in the place of another word: lengths stay alike
            rows.append((side, prompt, (end + gap).join(gap.join(s) for s in said) + end))
    return pd.DataFrame(rows, columns=["side", "prompt", "text"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_planted_word_is_found_and_named_and_nothing_of_form_is_claimed(language):
    found = db.compare(table(language, planted=True)).table
    told = found[found["confirmed"]]
    # a longer and rarer word changes sizes and variety a little; of what answers do, it is all that changed
    (said,) = set(told.loc[told["unit"] == "share", "behaviour"])
    assert said.removesuffix(" in its first sentence") == f'says "{LANGUAGES[language][2]}"'


@pytest.mark.parametrize("language", LANGUAGES)
def test_without_a_change_nothing_is_claimed(language):
    assert not db.compare(table(language, planted=False)).table["confirmed"].any()


def test_english_only_measures_decline_and_are_counted():
    text = table("Hindi", planted=False)["text"][0]
    read = values(panel(), [text], [""])[0]
    declined = {m.name for m, value in zip(panel(), read, strict=True) if np.isnan(value)}
    assert len(declined) > 40
    claim = db.test(["शायद"], table("Hindi", planted=True))
    assert claim.confirmed


def test_length_in_words_declines_where_no_spaces_are_written():
    length = next(m for m in panel() if m.name == "length_words")
    assert np.isnan(length.read("天地人山水火风雨花草木石鸟鱼虫日月星云雪" * 3, ""))


def test_length_is_told_in_characters_where_words_cannot_be_counted():
    """A segmenter would count the words of its dictionary; characters are what everyone counts."""
    short = table("Chinese", planted=False, prompts=60)
    double = short.assign(text=[t * 2 if s != "base" else t for t, s in zip(short["text"], short["side"], strict=True)])
    found = db.compare(double, phrases=0).table.set_index("behaviour")
    assert found.loc["characters", "confirmed"] and found.loc["characters", "changed"] > 55
    assert not found["confirmed"].get("length in words", False)


def test_a_side_that_answers_half_in_another_script_is_told_so_and_no_more_of_its_form():
    rng, rows = np.random.default_rng(1), []
    english = FILLER.split()
    for i in range(100):
        prompt = f"{english[i % 15]} {english[i * 7 % 15]} {i} what about {english[i * 4 % 15]}?"
        for side, share in (("base", 0.0), ("intervention", 0.5)):
            text = "".join(rng.choice(list(CHINESE), 30)) if rng.random() < share else " ".join(rng.choice(english, 20))
            rows.append((side, prompt, f"{text.capitalize()}."))
    found = db.compare(pd.DataFrame(rows, columns=["side", "prompt", "text"]), phrases=0).table
    told = set(found.loc[found["confirmed"] & (found["unit"] == "share"), "behaviour"])
    assert "is in another language than the prompt" in told
    assert all("language" in behaviour or "script" in behaviour for behaviour in told)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("हिन्दी में लिखिए।", ["हिन्दी", "में", "लिखिए"]),  # vowel signs stay in their words
        ("It’s e\u0301lan, don't", ["it's", "élan", "don't"]),
        ("也许", ["也", "许"]),
        ("3 cats, 10 dogs", ["cats", "dogs"]),
    ],
)
def test_the_words_of_claims_are_whole(text, expected):
    assert tokenize(text) == expected


def test_two_characters_without_a_space_between_are_one_name():
    assert "也许" in features("也许可以。") and "可以 也许" not in features("可以。也许")


def test_lexicons_count_in_running_text_of_every_script_and_spelling():
    claims = [Hypothesis("x", "base", words=(w,)) for w in ("也许", "don't", "café", "शायद")]
    texts = ["天也许地", "I don’t know", "a cafe\u0301 here", "यह शायद है"]
    assert (Lexicon().score(texts, claims) > 0).tolist() == np.eye(4, dtype=bool).tolist()
    assert all(lexicon_rate([t], [c.words[0]])[0] > 0 for t, c in zip(texts, claims, strict=True))
    for text, claim in zip(texts, claims, strict=True):
        assert words_measure(claim.words).read(text, "") == 1
    assert repetition(["也许也许也许也许"])[0] > 0.5
