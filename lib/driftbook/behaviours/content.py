"""Content: names, numbers, sources and languages that stand in an answer."""

from __future__ import annotations

import math

import regex

from driftbook.behaviours.entries import Family
from driftbook.behaviours.words import LEAST_WORDS, Reading, reading

MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)"
)
URL = r"https?://[^\s<>)\]\"]+|\bwww\.[^\s<>)\]\"]+"
_NAME = regex.compile(r"(?<=[\p{L}\p{N},;]\s)\p{Lu}[\p{L}'’-]+(?:\s(?:of\s|the\s|de\s|van\s)?\p{Lu}[\p{L}'’-]+)*")


def _names(r: Reading) -> float:
    found = sum(len(_NAME.findall(s)) for s in r.sentences)
    return 100 * found / len(r.prose_words) if r.prose_words else math.nan


def _switches(r: Reading) -> float:
    asked = reading(r.prompt)
    if r.latin != asked.latin:
        return 1.0
    if r.latin and not r.english and len(r.prompt_words) < LEAST_WORDS:
        return math.nan  # too short a prompt for its language to be known
    return float(r.english != asked.english)


f = Family("content")

MEASURES = (
    f.share("has_digits", "has digits", r"\p{Nd}",
            "A digit stands somewhere.",
            "It took 3 days.", "It took three days."),
    f.number("numbers", "numbers in digits", r"\p{Nd}+(?:[.,]\p{Nd}+)*",
             "Numbers in digits, marks of lists included.",
             "From 3 to 1,500.", "About 1,500."),
    f.share("has_years", "names a year", r"(?<![\d.,$€£])(?:1[5-9]\d\d|20\d\d)s?(?![\d,]|\.\d|\s?%)",
            "A number from 1500 to 2099 that reads as a year.",
            "It fell in 1989.", "It took 150 days."),
    f.share("has_dates", "names a date",
            rf"\b{MONTH}\.?\s+\d{{1,2}}\b|\b\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?{MONTH}\b"
            rf"|\b{MONTH}\.?,?\s+(?:1\d|20)\d\d\b"
            r"|\b\d{4}-\d{2}-\d{2}\b|\b\d{1,2}/\d{1,2}/\d{2,4}\b",
            "A day or a month of a year.",
            "It fell on November 9, 1989.", "It fell in autumn.", of="folded"),
    f.share("has_money", "names a sum of money",
            r"[$€£¥₹]\s?\d|\b\d[\d,.]*\s?(?:dollars|euros|pounds|usd|eur|gbp|yen|rupees)\b",
            "A number with a currency.",
            "It costs $5.", "It costs little.", of="folded"),
    f.share("has_percent", "names a percentage", r"\d\s?(?:%|％|percent\b|per cent\b)",
            "A number with a percent sign or the word.",
            "It fell by 5%.", "It fell by 5.", of="folded"),
    f.share("has_measurements", "names a measurement",
            r"\b\d[\d.,/]*\s?(?:-\s?)?(?:km|cm|mm|m|kg|g|mg|lbs?|oz|ml|l|miles?|feet|ft|inch(?:es)?|hours?|hrs?"
            r"|minutes?|mins?|seconds?|"
            r"days?|weeks?|months?|years?|cups?|tbsp|tsp|tablespoons?|teaspoons?|grams?|meters?|metres?"
            r"|degrees?|°[cf])\b",
            "A number with a unit of length, weight, volume, time or heat.",
            "Boil for 5 minutes.", "Boil a while.", of="folded"),
    f.share("has_url", "gives a web address", URL,
            "Text that begins with http://, https:// or www.",
            "See https://example.org.", "See example dot org."),
    f.share("has_link", "has a Markdown link", r"!?\[[^\]\n]+\]\([^)\s]+\)",
            "Text in square brackets before an address in parentheses.",
            "See [this](https://example.org).", "See [this] (below)."),
    f.share("has_email", "gives an e-mail address", r"\b[\w.+-]+@[\w-]+\.[\w.]+\b",
            "A name, an at sign and a domain.",
            "Write to ann@example.org.", "Write to Ann @ home."),
    f.share("has_citations", "cites",
            r"(?i)\[[1-9]\d{0,2}(?:[,–-] ?\d{1,3})*\](?!\()|(?<=\p{L}\.?, )(?:1[5-9]|20)\d\d[a-z]?\)|\bet al\b|\bdoi\b"
            r"|\barxiv\b|\bisbn\b|\n\W*(?:references|bibliography|works cited|sources)\W*\n",
            "A number in square brackets, a name and a year in parentheses, et al., a DOI or a list of references.",
            "It helps (Smith, 2020).", "It helped Smith (2020).", of="prose"),
    f.share("names_sources", "names a source in words",
            r"\baccording to (?!(?:your|their|its|his|her|my|our|each|how|what|whether)\b"
            r"|the (?:packag|packet|label|instruction|direction|recipe))"
            r"|\b(?:studies|research|evidence|experts|scientists|researchers|surveys?|data) (?:\w+ )?"
            r"(?:shows?|suggests?|says?|indicates?|finds?|found|agree|recommend)\b"
            r"|\ba (?:\d{4}|recent|new) (?:study|survey|report)\b"
            r"|\ba (?:study|survey) (?:by|from|published|conducted|found|shows?|showed|suggests?)\b",
            "Says according to, studies show, research suggests, a recent study and the like.",
            "According to Smith, it helps.", "Rest according to your needs.", of="folded", english=True),
    f.share("has_quotes", "has quotation marks", r"[\"“”„«»「『]",
            "A double quotation mark stands somewhere, outside blocks of code.",
            "He said \"no\".", "He said no.", of="prose"),
    f.number("quotations", "quotations", r"\"[^\"\n]{1,300}\"|“[^”\n]{1,300}”|«[^»\n]{1,300}»|「[^」\n]{1,300}」",
             "Pieces of text between double quotation marks.",
             "\"Yes\" or \"no\".", "\"Yes\" or no.", of="prose"),
    f.read("names", "names", "rate", _names,
           "Capitalised words inside sentences, several in a row as one, per 100 words.",
           "He met Ann in New York.", "He met Ann in a town.", english=True),
    f.share("has_steps", "counts its steps in words",
            r"\bstep (?:\d+|one|two|three|four)\b|\bfirst(?:ly)?,[\s\S]+\b(?:second(?:ly)?|then|next|finally|lastly),",
            "Says step 1, or first and later second, then, next or finally.",
            "First, boil water. Then, add tea.", "The first tea was green.", of="folded", english=True),
    f.share("defines", "explains a term",
            r"\b(?:refers to|is defined as|means that|stands for|is (?:a|an) (?:type|form|kind|branch|term"
            r"|process|method|measure) "
            r"(?:of|for|that|used)|is the (?:process|practice|study) of|is known as|are known as)",
            "Says refers to, is a type of, stands for, is known as and the like.",
            "Tea refers to a drink.", "Tea is hot.", of="folded", english=True),
    f.share("compares", "compares",
            ("compared to", "compared with", "in comparison", "in contrast", "unlike", "similar to", "similarly",
             "more than", "less than", "rather than", "as opposed to", "versus", "vs"),
            "Says compared to, unlike, similar to, more than and the like.",
            "Tea is cheap compared to wine.", "Tea is cheap.", english=True),
    f.read("other_language", "is in another language than English", "share", lambda r: float(not r.english),
           "By script; for Latin texts of 20 words and more by their function words and py3langid.",
           "这是一个很长的答案。", "This is a long answer."),
    f.read("switches_language", "is in another language than the prompt", "share", _switches,
           "Its script, or which of both is English, differs from the prompt; declined where the prompt is too short.",
           "这是一个很长的答案。", "This is a long answer."),
    f.share("has_other_script", "has words in another script than Latin", r"(?V1)[\p{L}--\p{Latin}]{2,}",
            "Two letters in a row that are not Latin.",
            "Hello is привет.", "Hello is privet, α."),
)  # fmt: skip
