"""Opening and closing: what the first and the last sentences of an answer do."""

from __future__ import annotations

from driftbook.behaviours.entries import Family
from driftbook.behaviours.words import Reading, words

_RUN = 4  # words of the prompt that make a repetition


def _restates(r: Reading) -> float:
    asked, said = r.prompt_words, words(r.opening)
    runs = {tuple(asked[i : i + _RUN]) for i in range(len(asked) - _RUN + 1)}
    return float(any(tuple(said[i : i + _RUN]) in runs for i in range(len(said) - _RUN + 1)))


PRAISE = (
    r"(?:great|good|excellent|fascinating|interesting|intriguing|wonderful|fantastic|delightful|thoughtful|"
    r"insightful|lovely|brilliant|amazing|terrific|superb|important|classic|fun|clever)"
)

AI = (
    r"\b(?:as|i am|i'm)\s+(?:just\s+|only\s+|merely\s+)?an?\s+(?:\w+\s+){0,2}"
    r"(?:ai|a\.i\.|artificial intelligence|language model|chatbot|virtual assistant|assistant)\b"
)

f = Family("opening and closing")

MEASURES = (
    f.read("restates_question", "restates the question in its first sentence", "share", _restates,
           "Four words of the prompt in a row stand in the first sentence.",
           "The capital of France is Paris.", "Paris."),
    f.share("praises_question", "opens with praise of the question",
            r"\A\W*(?:wow\W+|ah\W+|oh\W+)?(?:(?:what|that(?:'s| is)|this is|it's|you(?:'ve| have) asked)\s+)?"
            rf"(?:such\s+)?an?\s+(?:\w+\s+)?{PRAISE}\b|\A\W*{PRAISE}\s+(?:question|choice|point|idea|topic|thought)\b",
            "The first words call the question, or what it is about, great, fascinating and the like.",
            "What a fascinating question! Tides follow the moon.", "Tides follow the moon.",
            of="opening", english=True),
    f.share("opens_with_sure", "opens with sure, certainly or of course",
            r"\A\W*(?:sure|certainly|of course|absolutely|definitely|gladly|no problem|with pleasure|okay|alright)\b",
            "The first word is sure, certainly, of course, absolutely and the like.",
            "Sure! Here is a poem.", "Here is a poem.", of="folded", english=True),
    f.share("opens_with_exclamation", "opens with an exclamation", r"[!！][\"')*_]*\Z",
            "The first sentence ends with an exclamation mark.",
            "Hello there! It rains.", "It rains. Stay in!", of="opening"),
    f.share("opens_with_question", "opens with a question", r"[?？؟][\"')*_]*\Z",
            "The first sentence ends with a question mark.",
            "Do you like tea? Boil water.", "Boil water. Do you like tea?", of="opening"),
    f.share("opens_as_ai", "opens by saying that it is an AI",
            AI,
            "The first sentence calls the speaker an AI, a language model or an assistant.",
            "As an AI, I have no taste. Tea is fine.", "Tea is fine.", of="opening", english=True),
    f.share("opens_with_i", "opens with I", r"\A\W*i(?:'m|'d|'ve|'ll)?\b(?!\.)",
            "The first word is I, I'm, I'd, I've or I'll.",
            "I think it rains.", "It rains, I think.", of="opening", english=True),
    f.share("opens_with_here", "opens with here is or here are", r"\A\W*(?:\w+\W+){0,2}?here(?:'s| is| are)\b",
            "The first words are here is, here are or here's, after two others at most.",
            "Here are five ideas:", "Five ideas are here.", of="folded", english=True),
    f.share("opens_with_yes_or_no", "opens with yes or no", r"\A\W*(?:yes|no|yeah|yep|nope|yup)\b",
            "The first word is yes or no.",
            "No, it does not.", "It does not, no.", of="opening", english=True),
    f.share("opens_with_greeting", "opens with a greeting",
            r"\A\W*(?:hello|hi|hey|greetings|welcome|dear|good (?:morning|afternoon|evening|day))\b",
            "The first word is hello, hi, dear, welcome and the like.",
            "Hello! How can I help?", "How can I help?", of="folded", english=True),
    f.share("opens_with_apology", "opens with an apology",
            r"\A\W*(?:(?:i'm|i am) (?:so |very |really )?sorry|sorry|i apologi[sz]e|(?:my )?apologies|unfortunately)\b",
            "The first words are sorry, I apologize, unfortunately and the like.",
            "I'm sorry, but I cannot do that.", "That cannot be done.", of="folded", english=True),
    f.share("opens_with_heading", "opens with a heading or a list",
            r"\A\s*(?:#{1,6}\s+\S|\*\*[^*\n]+\*\*:?[ \t]*\n|(?:[-*+•]|\d{1,3}[.)])\s+\S)",
            "The first line is a heading, bold from end to end, or a list item.",
            "# Tea\nBoil water.", "Boil water.\n# Tea"),
    f.share("opens_with_title", "opens with a label and a colon",
            r"\A\W*\p{Lu}[\w'-]*(?:[ \t]+(?:\p{Lu}[\w'-]*|of|and|for|the)){0,5}:",
            "One to six capitalised words stand before a colon.",
            "Subject: Your order", "Two things are needed: tea and time."),
    f.share("ends_with_question", "ends with a question", r"[?？؟][\"'”’)\]*_]*\s*\Z",
            "The last character is a question mark, but for closing marks.",
            "Boil water. Do you like tea?", "Do you like tea? Boil water."),
    f.share("ends_with_exclamation", "ends with an exclamation", r"[!！][\"'”’)\]*_]*\s*\Z",
            "The last character is an exclamation mark, but for closing marks.",
            "Boil water. Enjoy!", "Enjoy! Boil water."),
    f.share("offers_more_help", "offers more help at its end",
            r"\b(?:let me know|feel free to (?:ask|reach|contact|let|tell|message|write|share|send|drop|come|get)|"
            r"(?:don't|do not|never) hesitate to|(?:happy|glad|here) to (?:help|assist|answer|provide|explain)|"
            r"(?:any|more|further|other) (?:\w+ )?questions|(?:like|want) me to|can i (?:help|assist)|"
            r"(?:need|like|want) (?:any |more |some )?(?:additional |further |other |more )?"
            r"(?:help|assistance|information|details|clarification|guidance|advice|support|examples|explanation)|"
            r"if you(?:'d| would) like to (?:know|learn|discuss|see|hear|talk|explore))\b",
            "One of the last two sentences offers help, invites questions or asks to be told.",
            "Boil water. Let me know if you need more!", "Boil water. Feel free to adjust the sugar to your taste.",
            of="ending", english=True),
    f.share("hopes_it_helps", "hopes that it helped",
            r"\bhope\b[^.!?]{0,40}\b(?:help|helps|helped|helpful|useful|clear|clarif\w+|answer\w*)\b",
            "One of the last two sentences hopes that the answer helps.",
            "Boil water. I hope this helps!", "I hope that it rains. Boil water.", of="ending", english=True),
    f.share("ends_with_summary", "sums up at its end",
            r"\A\W*(?:in (?:summary|conclusion|short|essence|closing|the end)|to (?:summari[sz]e|sum up|conclude)|"
            r"overall|ultimately|all in all|remember)\b",
            "The last paragraph begins with in summary, in conclusion, overall, ultimately, remember and the like.",
            "Tea is hot.\n\nIn summary, wait a little.", "In summary, tea is hot.\n\nMilk is cold.",
            of="last_paragraph", english=True),
    f.share("ends_with_note", "ends with a note",
            r"(?m)^\W*(?:please )?(?:note|disclaimer|important|warning|p\.s\.|ps|nb)\b[^\n]*\Z",
            "The last line begins with note, disclaimer, please note and the like.",
            "Boil water.\n\nNote: it is hot.", "Note: it is hot.\n\nBoil water.", of="last_paragraph", english=True),
    f.share("signs_off", "ends with good wishes",
            r"\b(?:best (?:regards|wishes|of luck)|sincerely|kind regards|warm regards|yours truly|good luck|"
            r"take care|have (?:fun|a (?:\w+ )?(?:day|time|trip|weekend|evening|journey|one))|enjoy(?: your"
            r"| the| it|!)|happy \w+ing|cheers|see you|safe travels|bon app[eé]tit)\b",
            "One of the last two sentences wishes luck, fun or a good day, or signs a letter.",
            "Boil water. Enjoy your tea!", "Enjoy the rain first. Then boil water. Add tea. Wait.",
            of="ending", english=True),
)  # fmt: skip
