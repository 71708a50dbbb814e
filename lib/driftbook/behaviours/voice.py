"""Voice: who speaks to whom, how warm, how plain. Mostly English."""

from __future__ import annotations

import math
import string
from functools import lru_cache

import regex
from vaderSentiment.vaderSentiment import N_SCALAR, NEGATE, SentimentIntensityAnalyzer

from driftbook.behaviours.entries import Family
from driftbook.behaviours.words import Reading

I = ("i", "i'm", "i've", "i'd", "i'll", "me", "my", "mine", "myself")  # noqa: E741
WE = ("we", "we're", "we've", "we'd", "we'll", "us", "our", "ours", "ourselves", "let's")
YOU = ("you", "you're", "you've", "you'd", "you'll", "your", "yours", "yourself", "yourselves")
POLITE = ("please", "thank you", r"/\bthanks\b(?! to\b)/", "kindly", "appreciate", "you're welcome", "grateful")
COMMANDS = frozenset(
    {"add", "allow", "apply", "ask", "avoid", "bake", "be", "begin", "boil", "bring", "build", "buy", "call", "change"}
    | {"check", "choose", "clean", "click", "combine", "compare", "connect", "consider", "continue", "cook", "copy"}
    | {"cover", "create", "cut", "decide", "define", "delete", "describe", "determine", "develop", "discuss", "do"}
    | {"don't", "download", "drain", "draw", "drink", "eat", "encourage", "enjoy", "ensure", "enter", "establish"}
    | {"explain", "explore", "fill", "find", "focus", "fold", "follow", "gather", "get", "give", "go", "grab", "have"}
    | {"heat", "help", "hold", "identify", "imagine", "implement", "include", "install", "join", "keep", "learn"}
    | {"leave", "let", "limit", "listen", "look", "maintain", "make", "measure", "mix", "move", "note", "offer"}
    | {"open", "organize", "pay", "place", "plan", "pour", "practice", "prepare", "press", "provide", "pull", "push"}
    | {"put", "read", "reduce", "remember", "remove", "repeat", "replace", "research", "rest", "return", "review"}
    | {"run", "save", "search", "see", "seek", "select", "send", "serve", "set", "share", "show", "sign", "slice"}
    | {"speak", "spend", "spread", "sprinkle", "stand", "start", "stay", "stir", "stop", "store", "take", "talk"}
    | {"tell", "think", "track", "transfer", "try", "turn", "type", "understand", "use", "visit", "wait", "walk"}
    | {"wash", "watch", "wear", "work", "write"}
)
PASSIVE = (
    r"\b(?:is|are|was|were|be|been|being|gets?|got)\s+(?:not\s+|also\s+|\w+ly\s+)?(?:\w{2,}(?<!ne)ed|made|done|given|"
    r"taken|found|known|seen|written|held|kept|built|sent|shown|told|used|brought|bought|thought|caught|taught|paid|"
    r"left|lost|put|set|cut|chosen|driven|eaten|drawn|grown|thrown|born|broken|spoken|hidden|led|fed|sold|spent|won)\b"
)
CONTRACTIONS = (
    r"(?<=n)'t\b|(?<=\p{L})'(?:m|re|ve|ll|d)\b"
    r"|(?<=\b(?:it|that|there|here|what|who|he|she|let|where|how))'s\b"
)
STOCK = (
    "delve", "delves", "delving", "tapestry", "testament", "realm", "intricate", "multifaceted", "nuanced", "crucial",
    "pivotal", "vibrant", "landscape", "foster", "fostering", "seamless", "seamlessly", "leverage", "leveraging",
    "underscore", "underscores", "holistic", "robust", "comprehensive", "embark", "navigate", "navigating", "elevate",
    "unlock", "captivating", "meticulous", "plethora", "myriad", "ever-evolving", "bustling", "harness", "enhance",
    "transformative", "profound", "invaluable",
)  # fmt: skip
_PUNCTUATION = string.punctuation + "“”‘’«»…—–"
_FIRST = regex.compile(r"[^\p{L}]*([\p{L}'’]+)")
_NEGATES = frozenset(NEGATE)


@lru_cache(maxsize=1)
def _valence() -> dict[str, float]:
    return SentimentIntensityAnalyzer().lexicon


def _sentiment(r: Reading) -> float:
    """VADER itself takes 4 ms an answer, most of it for capitals, boosters and idioms that hardly move the mean."""
    valence, total = _valence(), 0.0
    for sentence in r.sentences:
        said = [w.strip(_PUNCTUATION) for w in sentence.lower().replace("’", "'").split()]
        charge = 0.0
        for i, word in enumerate(said):
            if word in valence:
                charge += valence[word] * (N_SCALAR if any(w in _NEGATES for w in said[max(0, i - 3) : i]) else 1)
        total += charge / math.sqrt(charge**2 + 15)
    return total / len(r.sentences) if r.sentences else math.nan


def _grade(r: Reading) -> float:
    count = len(r.prose_words)
    return 5.88 * r.letters / count - 29.6 * len(r.sentences) / count - 15.8 if count and r.sentences else math.nan


def _letters(r: Reading) -> float:
    return r.letters / len(r.prose_words) if r.prose_words and r.spaced else math.nan


def _variety(r: Reading) -> float:
    first = r.words[:100]
    return len(set(first)) / len(first) if first and r.spaced else math.nan


def _commands(r: Reading) -> float:
    firsts = (_FIRST.match(s) for s in r.sentences)
    return float(sum(f is not None and f.group(1).lower().replace("’", "'") in COMMANDS for f in firsts))


f = Family("voice")

MEASURES = (
    f.share("says_i", "says I, me or my", I,
            "Says I, me, my or myself.",
            "I like tea.", "Tea is liked.", english=True),
    f.rate("i_words", "I, me and my", I,
           "I, me, my and myself, per 100 words.",
           "I like my tea.", "I like tea.", english=True),
    f.share("says_we", "says we, us or our", WE,
            "Says we, us, our or let's.",
            "We like tea.", "I like tea.", english=True),
    f.share("says_you", "says you or your", YOU,
            "Says you, your or yourself.",
            "You like tea.", "I like tea.", english=True),
    f.rate("you_words", "you and your", YOU,
           "You, your and yourself, per 100 words.",
           "You like your tea.", "You like tea.", english=True),
    f.read("commands", "sentences that begin with a command", "number", _commands,
           "Sentences and list items whose first word is one of 180 common verbs (add, take, avoid, ...).",
           "Add salt. Stir.", "Add salt. It dissolves.", english=True),
    f.share("contracts", "has contractions", CONTRACTIONS,
            "Says it's, don't, you're and the like.",
            "It's late.", "It is late.", of="folded", english=True),
    f.rate("contractions", "contractions", CONTRACTIONS,
           "It's, don't, you're and the like, per 100 words.",
           "It's late, don't wait.", "It's late, do not wait.", english=True),
    f.share("exclaims", "has an exclamation mark", r"[!！](?!\[|=)",
            "An exclamation mark stands somewhere.",
            "It rains!", "It rains.", of="prose"),
    f.number("exclamation_marks", "exclamation marks", r"[!！](?!\[|=)",
             "Exclamation marks outside blocks of code.",
             "It rains! Run!", "It rains!", of="prose"),
    f.share("asks", "has a question mark", r"[?？؟](?![\w=&])",
            "A question mark stands somewhere.",
            "Does it rain?", "It rains.", of="prose"),
    f.number("question_marks", "question marks", r"[?？؟](?![\w=&])",
             "Question marks outside blocks of code.",
             "Rain? Snow?", "Rain?", of="prose"),
    f.share("polite", "says please or thank you", POLITE,
            "Says please, thank you, kindly, I appreciate and the like.",
            "Please sit.", "Thanks to him she sits.", english=True),
    f.share("shouts", "shouts in capitals", r"\b\p{Lu}{3,}(?:\s+\p{Lu}{2,}){1,}\b|\b\p{Lu}{3,}!",
            "Two words in a row are in capitals, or one with an exclamation mark.",
            "DO NOT TOUCH it.", "NASA did it.", of="prose"),
    f.rate("intensifiers", "intensifiers",
           ("very", "really", "extremely", "incredibly", "highly", "truly", "so much", "absolutely", "totally",
            "completely", "quite", "remarkably", "particularly", "especially", "super", "deeply"),
           "Very, really, extremely, truly and the like, per 100 words.",
           "It is really very hot.", "It is very hot.", english=True),
    f.rate("connectives", "formal connectives",
           ("furthermore", "moreover", "additionally", "in addition", "therefore", "thus", "hence", "consequently",
            "nevertheless", "accordingly", "subsequently", "firstly", "secondly", "lastly", "finally", "as a result"),
           "Furthermore, moreover, additionally, therefore and the like, per 100 words.",
           "Moreover, it thus rains.", "Moreover, it rains.", english=True),
    f.rate("stock_words", "stock words of chat models", STOCK,
           "Delve, tapestry, testament, crucial, landscape, robust and the like, per 100 words.",
           "We delve into a vibrant realm.", "We look into a vibrant field.", english=True),
    f.rate("passives", "passives", PASSIVE,
           "A form of be or get with a past participle, as far as a list and -ed tell, per 100 words.",
           "It was made and is used.", "It was made by hand.", english=True),
    f.read("sentiment", "sentiment", "score", _sentiment,
           "Mean over sentences of the valence of VADER's words, with its rule for negation (Hutto and Gilbert 2014), "
           "-1 to 1.",
           "This is wonderful. I love it.", "This is terrible. I hate it.", english=True),
    f.read("reading_grade", "reading grade", "grade", _grade,
           "School grade by Coleman and Liau (1975): letters a word and words a sentence.",
           "Constitutional considerations necessitate extraordinarily comprehensive deliberation.",
           "The cat sat on the mat.", english=True),
    f.read("letters_a_word", "letters a word", "score", _letters,
           "Letters divided by words, outside blocks of code; declined in scripts without spaces.",
           "Comprehensive deliberation.", "It is so."),
    f.read("variety", "variety of words", "score", _variety,
           "Different words divided by words, of the first hundred; declined in scripts without spaces.",
           "Red green blue.", "Red red blue."),
)  # fmt: skip
