"""Form: how long an answer is and how it is laid out. Read in every script."""

from __future__ import annotations

import math

import regex

from driftbook.behaviours.entries import Family
from driftbook.behaviours.words import Reading, words

_ITEM = regex.compile(r"(?m)^[ \t]*(?:[-*+•‣◦▪●]|\d{1,3}[.)])\s+\S")
_ENDED = regex.compile(r"(?r)[.!?…।॥؟۔][^\p{L}\p{N}]*\Z")
# Comments of code that no fence marks off look like headings, but a line of code stands right below.
_CODE_BELOW = (
    r"(?!\n[ \t]*(?:(?:import|from|def|class|for|while|if|return|print|const|let|var|public|int)\b"
    r"|[\w.\[\], ]+ ?[-+*/]?= ?\S|[\w.]+\())"
)
_HEADING = r"(?m)^ {0,3}#{1,6}[ \t]+\S[^\n]*$" + _CODE_BELOW
_BLOCK = regex.compile(r"\n[^\S\n]*\n\s*")


def _length(r: Reading) -> float:
    return float(len(r.words)) if r.spaced else math.nan


def _words_a_sentence(r: Reading) -> float:
    ended = [s for s in r.sentences if _ENDED.search(s)]
    return sum(map(len, map(words, ended))) / len(ended) if ended and r.spaced else math.nan


def _paragraphs(r: Reading) -> float:
    return float(len([b for b in _BLOCK.split(r.text.strip()) if b.strip()]))


def _item_share(r: Reading) -> float:
    lines = [line for line in r.text.split("\n") if line.strip()]
    return len(_ITEM.findall(r.text)) / len(lines) if lines else math.nan


f = Family("form")

MEASURES = (
    f.read("length_words", "length in words", "words", _length,
           "Number of words; declined in scripts without spaces.",
           "One two three four five.", "One."),
    f.read("length_sentences", "length in sentences", "sentences", lambda r: float(len(r.sentences)),
           "Number of sentences; a list item or a heading is one, a block of code none.",
           "It rains. Stay in. Read.", "It rains."),
    f.read("characters", "characters", "number", lambda r: float(len(r.text)),
           "Number of characters, of whatever script.",
           "这是一个很长的答案。", "短。"),
    f.read("words_a_sentence", "words a sentence (lists aside)", "words", _words_a_sentence,
           "Mean over sentences with an end mark, so that headings and short list items do not count; declined in "
           "scripts without spaces.",
           "The old dog slept by the door all day.", "It slept. It woke."),
    f.read("is_one_sentence", "is a single sentence", "share", lambda r: float(len(r.sentences) == 1),
           "There is exactly one sentence.",
           "Paris is the capital of France.", "Paris. It lies on the Seine."),
    f.read("is_brief", "is five words or fewer", "share",
           lambda r: float(1 <= len(r.words) <= 5) if r.spaced else math.nan,
           "One to five words, as where only a name or a choice is given.",
           "Paris, France.", "The capital of France is Paris."),
    f.read("has_paragraphs", "has several paragraphs", "share", lambda r: float(_paragraphs(r) > 1),
           "A blank line stands between two pieces of text.",
           "It rains.\n\nStay in.", "It rains.\nStay in."),
    f.read("paragraphs", "paragraphs", "number", _paragraphs,
           "Pieces of text between blank lines.",
           "It rains.\n\nStay in.", "It rains."),
    f.number("lines", "lines", r"(?m)^.*\S",
             "Lines that are not blank.",
             "It rains.\nStay in.", "It rains. Stay in."),
    f.share("has_bulleted_list", "has a bulleted list", r"(?m)^[ \t]*[-*+•‣◦▪●]\s+\S",
            "A line begins with a bullet (-, *, + or •) and text.",
            "Bring:\n- water\n- bread", "Bring water - and bread."),
    f.number("bullets", "bulleted items", r"(?m)^[ \t]*[-*+•‣◦▪●]\s+\S",
             "Lines that begin with a bullet and text.",
             "- water\n- bread", "- water"),
    f.share("has_numbered_list", "has a numbered list", r"(?m)^[ \t]*(?:\*\*)?\(?\d{1,3}[.)](?:\*\*)?\s+\S",
            "A line begins with a number, a full stop or parenthesis, and text.",
            "1. Boil water.\n2. Add tea.", "In 1990. It was cold."),
    f.number("numbered_items", "numbered items", r"(?m)^[ \t]*(?:\*\*)?\(?\d{1,3}[.)](?:\*\*)?\s+\S",
             "Lines that begin with a number, a full stop or parenthesis, and text.",
             "1. Boil water.\n2. Add tea.", "1. Boil water."),
    f.read("list_share", "share of its lines that are list items", "score", _item_share,
           "List items divided by lines that are not blank, 0 to 1.",
           "- water\n- bread", "Bring these:\nwater and bread."),
    f.share("has_list_lead", "leads into a list with a colon",
            r"[:：][*_ \t]*\n\s*(?:[-*+•‣◦▪●]|\d{1,3}[.)])\s+\S",
            "A line ends with a colon and a list item follows.",
            "You need:\n- water", "You need\n- water"),
    f.share("has_bold_items", "has list items that begin in bold",
            r"(?m)^[ \t]*(?:[-*+•‣◦▪●]|\d{1,3}[.)])\s+(?:\*\*|__)[^*\n]+(?:\*\*|__)",
            "A list item begins with bold text.",
            "1. **Water**: two litres", "1. Water: **two** litres"),
    f.share("has_heading", "has a heading", _HEADING,
            "A line begins with one to six number signs and text, outside code: no line of code stands right below it.",
            "## Plan\nGo early.", "Plan #1: go early.", of="prose"),
    f.number("headings", "headings", _HEADING,
             "Lines that begin with one to six number signs and text, outside code.",
             "# A\ntext\n# B\ntext", "# A\ntext", of="prose"),
    f.share("has_bold_heading", "has a line in bold from end to end", r"(?m)^[ \t]*\*\*[^*\n]+\*\*:?[ \t]*$",
            "A line is bold from end to end, as where a heading is set in bold.",
            "**Plan**\nGo early.", "**Plan**: go early."),
    f.share("has_bold", "has bold text", r"\*\*[^*\s][^*\n]*\*\*",
            "Text between double asterisks, outside blocks of code.",
            "Go **early**.", "Go early, 2**3 times.", of="prose"),
    f.number("bold_phrases", "phrases in bold", r"\*\*[^*\s][^*\n]*\*\*",
             "Pieces of text in bold.",
             "**Go** and **see**.", "**Go** and see.", of="prose"),
    f.share("has_italics", "has text in italics",
            r"(?<![*\w\\])\*(?![\s*])[^*\n]*(?<![\s*])\*(?![*\w])|(?<![_\w\\])_(?![\s_])[^_\n]*(?<![\s_])_(?![_\w])",
            "Text between single asterisks or single underscores.",
            "Go *early*.", "Go **early**, 2 * 3 * 4.", of="prose"),
    f.share("has_table", "has a table", r"(?m)^[ \t]*\|?.*\|.*\n[ \t]*\|?[ \t]*:?-{2,}:?[ \t]*(?:\||$)",
            "A line with vertical bars, and a line of dashes under it.",
            "| a | b |\n|---|---|\n| 1 | 2 |", "a | b"),
    f.share("has_code_block", "has a block of code", r"(?m)^[ \t]*(?:```|~~~)",
            "A line begins with three backticks or tildes.",
            "```python\nx = 1\n```", "Use `x = 1`."),
    f.share("has_inline_code", "has code inside a line", r"(?<!`)`[^`\n]+`(?!`)",
            "Text between single backticks.",
            "Use `print(x)`.", "```\nx = 1\n```"),
    f.share("has_formula", "has a formula in LaTeX",
            r"\$\$|\\\(|\\\[|\\(?:frac|sqrt|sum|int|cdot|times|begin)\b|\$(?!\s)(?:[^$\n]*[\\^_]|(?!\d)[^$\n]*=)[^$\n]*(?<!\s)"
            r"\$(?!\w)",
            "LaTeX delimiters or commands, outside of code.",
            "So \\(a^2 + b^2\\) holds.", "2 * $5 = $10.", of="prose"),
    f.share("has_rule", "has a horizontal rule", r"(?m)^[ \t]*(?:-{3,}|\*{3,}|_{3,})[ \t]*$",
            "A line of three or more dashes, asterisks or underscores.",
            "One.\n\n---\n\nTwo.", "One -- two."),
    f.share("has_blockquote", "has a block quotation", r"(?m)^[ \t]*>\s+\S",
            "A line begins with > and text.",
            "> To be, or not to be.", "5 > 4"),
    f.share("has_emoji", "has an emoji", r"[\U0001F300-\U0001FAFF\u2600-\u27BF\u2B50\u2B55]",
            "A pictograph of the Unicode blocks for emoji, symbols and dingbats.",
            "Well done! 🎉", "Well done! :)"),
    f.number("emojis", "emojis", r"[\U0001F300-\U0001F3FA\U0001F400-\U0001FAFF\u2600-\u27BF\u2B50\u2B55]",
             "Pictographs; tones of skin are not counted apart.",
             "Yes 🎉🎉", "Yes 🎉"),
    f.share("has_parentheses", "has a remark in parentheses",
            r"(?:（|(?<![A-Za-z\d_\]`.$])\()[^()（）\n]*\p{L}{2}[^()（）\n]*[)）]",
            "Words between parentheses, outside of code; a call and the address of a link are none.",
            "Go early (before noon).", "Use print(hello) or [this](there).", of="prose"),
    f.rate("dashes", "dashes", r"(?m)(?<!^[ \t]*)[—–]|(?<=\S[ \t]+)--?(?=\s)",
           "Em dashes, en dashes and hyphens between spaces, per 100 words; the bullets of a list are none.",
           "It works — most of the time.", "- It works.\n- Mostly.", of="prose"),
    f.rate("colons", "colons and semicolons", r"[:;：；](?!//)",
           "Colons and semicolons, per 100 words.",
           "Bring two things: water; bread.", "Bring water and bread.", of="prose"),
    f.rate("commas", "commas", r"[,，、،]",
           "Commas, per 100 words.",
           "Red, green, blue.", "Red and green and blue.", of="prose"),
    f.share("has_ellipsis", "trails off with dots", r"\.\.\.|…",
            "Three dots stand somewhere.",
            "Well... perhaps.", "Well, perhaps."),
    f.share("no_end_mark", "has no end mark", r"[^\s.!?…:;。！？：；।॥؟۔\"'”’」』)\]*_`|>~}$]\s*\Z",
            "The last character ends no sentence, quotation, list or code, as where an answer is cut off.",
            "The reason is that the", "The reason is rain.", of="tail"),
    f.share("ends_cut_off", "ends in the middle of a sentence",
            r"(?:\b(?:the|a|an|of|to|and|or|in|with|for|is|are|that|as|by|from|on|at|your|their|its)|,)\s*\Z",
            "The last word is one that no sentence ends with, such as \"the\" or \"and\", or a comma.",
            "You can find it in the", "You can find it there", of="folded", english=True),
)  # fmt: skip
