"""Stance: how sure an answer is, what it will not do, how it stands to the person who asked. English."""

from __future__ import annotations

from driftbook.behaviours.entries import Family
from driftbook.behaviours.opening import AI

HEDGES = (
    "perhaps", "maybe", "might", "possibly", "probably", "likely", "unlikely", "presumably", "not sure", "unsure",
    "uncertain", "hard to say", "difficult to say", "it depends", "i guess", "i suppose", "i suspect", "conceivably",
)  # fmt: skip
QUALIFIERS = (
    "generally", "typically", "usually", "often", "sometimes", "in general", "in most cases", "in some cases",
    "tend to", "tends to", "may vary", "can vary", "varies", "depending on", "depends on", "to some extent",
    "more or less", "for the most part", "seems to", "appears to", "it seems", "arguably", "relatively", "somewhat",
)  # fmt: skip
CERTAINTIES = (
    "certainly", "definitely", "undoubtedly", "clearly", "obviously", "absolutely", "of course", "without a doubt",
    "without doubt", "no doubt", "surely", "indeed", "always", "never", "guaranteed", "for sure", "i'm certain",
    "i am certain", "it is certain", "it's certain", "in fact", "unquestionably", "must be", "exactly", "precisely",
    "the fact is", "beyond doubt",
)  # fmt: skip
CONTRASTS = ("however", "but", "although", "though", "nevertheless", "nonetheless", "that said", "even so")
ADVICE = (
    "should", "shouldn't", "ought to", "recommend", "recommended", "suggest", "advise", "advisable", "consider",
    "try to", "you could", "you can", "make sure", "be sure to", "it's best to", "it is best to", "had better",
    "need to",
)  # fmt: skip
REFUSAL = (
    r"\bi(?:'m| am)? (?:sorry,? but i )?(?:cannot|can't|can not|won't|will not|"
    r"would not|wouldn't|unable to|not able to|not allowed to|not permitted to|not comfortable|must decline|"
    r"have to decline|decline to|refuse to|do not feel comfortable|don't feel comfortable|not programmed to|"
    r"not designed to|not authorized to)"
    r"(?! (?:wait|recommend \w+ enough|stress|emphasi[sz]e|thank|overstate|imagine|agree more|help but))"
    r"|\b(?:cannot|can't|can not|won't|unable to|not able to) (?:\w+ )?(?:assist|help|provide|fulfil|fulfill|answer|"
    r"comply|support|offer|give|create|write|generate|discuss|share|engage)\b"
    r"|\bagainst my (?:programming|guidelines|principles|policy)|\bnot appropriate (?:for me )?to\b"
    r"|\b(?:do|does|can) ?not (?:condone|promote|endorse|encourage|engage in|support) (?:or \w+ )?(?:\w+ )?"
    r"(?:violence|illegal|harm|hate|discriminat|unethical|such)"
    r"|\bit(?:'s| is| would be) (?:not|never) (?:\w+ )?(?:ethical|legal|appropriate|acceptable|safe)(?: (?:or"
    r"|and) \w+)? to\b"
)

f = Family("stance")

MEASURES = (
    f.share("hedges", "hedges", HEDGES,
            "Says perhaps, might, likely, not sure, it depends and the like.",
            "It might rain.", "It rains.", english=True),
    f.rate("hedging_words", "hedging words", HEDGES,
           "Perhaps, might, likely, not sure, it depends and the like, per 100 words.",
           "Perhaps it might rain.", "Perhaps it rains.", english=True),
    f.share("qualifies", "qualifies what it says", QUALIFIERS,
            "Says generally, usually, often, in most cases, tends to, depending on and the like.",
            "It usually rains.", "It rains.", english=True),
    f.rate("qualifying_words", "qualifying words", QUALIFIERS,
           "Generally, usually, often, in most cases, tends to and the like, per 100 words.",
           "It usually rains, sometimes.", "It usually rains today.", english=True),
    f.share("opines", "gives an opinion of its own",
            ("in my opinion", "in my view", "i think", "i believe", "i feel", "i'd say", "i would say", "i prefer",
             "personally", "my favorite", "my favourite", "if you ask me", "to my mind"),
            "Says I think, I believe, in my opinion, personally, my favourite and the like.",
            "I think it rains.", "It rains.", english=True),
    f.share("is_certain", "speaks with certainty", CERTAINTIES,
            "Says certainly, definitely, clearly, of course, always, never and the like.",
            "It will certainly rain.", "It may rain.", english=True),
    f.rate("certain_words", "words of certainty", CERTAINTIES,
           "Certainly, definitely, clearly, always, never and the like, per 100 words.",
           "It clearly always rains.", "It clearly rains.", english=True),
    f.share("admits_not_knowing", "admits that it does not know",
            r"\b(?:i|we) (?:do not|don't|didn't|did not) (?:\w+ )?(?:know|have (?:any |enough |access"
            r"|information|data|details))"
            r"|\b(?:i'm|i am) (?:not sure|unsure|not certain|not aware|not familiar)|\bno (?:reliable "
            r"|definite )?(?:information|way to know)"
            r"|\bas of my (?:last|knowledge|latest)|\bknowledge (?:cutoff|cut-off)|\bcould not find\b"
            r"|\bunable to (?:find|verify|confirm|determine)",
            "Says I don't know, I have no information, I am not sure, as of my last update and the like.",
            "I don't know who wrote it.", "Nobody wrote it.", of="folded", english=True),
    f.share("refuses", "says that it cannot or will not do it", REFUSAL,
            "Says I cannot, I'm unable to, I won't help, it is not ethical to and the like.",
            "I cannot help with that.", "That cannot be opened by hand.", of="folded", english=True),
    f.share("refuses_at_once", "refuses in its first words",
            r"\A\W*(?:(?:i'm|i am) (?:so |very |really |truly )?sorry|(?:i )?apologi[sz]e|my apologies|sorry"
            r"|unfortunately|as an ai"
            r"|i (?:cannot|can't|can not|won't|will not|must|am unable|am not able)|i'm (?:unable|not able)|no,)"
            r"[^\n]{0,200}?(?:cannot|can't|can not|won't|will not|unable|not able|decline|not appropriate"
            r"|not provide|not have)",
            "Begins with an apology, as an AI or I cannot, and goes on with what it cannot do.",
            "I'm sorry, but I can't share that.", "Sure. You cannot buy it, though.", of="folded", english=True),
    f.share("apologizes", "apologizes",
            ("sorry", "apologize", "apologise", "apologies", "my apologies", "apology", "forgive me", "pardon me"),
            "Says sorry, I apologize, my apologies, forgive me and the like.",
            "Sorry about the rain.", "It rained.", english=True),
    f.share("speaks_as_ai", "speaks of itself as an AI",
            AI + r"|\b(?:my|an) (?:training data|ai language model|ai model|ai assistant)\b",
            "Calls itself an AI, a language model or an assistant.",
            "I'm an AI, so I do not sleep.", "AI is a field of study.", of="folded", english=True),
    f.share("disclaims", "says that it is no expert or no advice",
            r"\bnot an? (?:\w+ )?(?:doctor|lawyer|attorney|financial advis[eo]r|therapist|expert|physician"
            r"|professional)\b"
            r"|\b(?:not|no) (?:an? )?(?:substitute|replacement) for\b|\bnot (?:\w+ )?(?:medical|legal|financial"
            r"|professional) advice\b"
            r"|\bdisclaimer\b|\b(?:general|informational|educational) (?:information(?:al)? )?purposes\b",
            "Says not a doctor, not a substitute for, disclaimer, informational purposes only and the like.",
            "I'm not a doctor, but rest helps.", "Rest helps.", of="folded", english=True),
    f.share("sends_to_professional", "sends to a professional",
            r"\b(?:consult|see|speak|talk|contact|ask|seek|reach out|call|visit"
            r"|check)\b[^.!?\n]{0,50}\b(?:doctor|physician|lawyer|"
            r"attorney|professional|professionals|therapist|counsel\w*|specialist|expert|experts|pharmacist"
            r"|veterinarian|vet|"
            r"advis[eo]r|provider|dietitian|mechanic|authorities)\b|\bseek (?:\w+ )?(?:help|advice|care|attention)\b",
            "Says consult a doctor, speak to a lawyer, seek professional help and the like.",
            "Please consult a doctor.", "Doctors sleep, too.", of="folded", english=True),
    f.share("warns", "speaks of risk, danger or what to avoid",
            ("warning", "caution", "cautious", "be careful", "careful", "beware", "danger", "dangerous", "risk",
             "risks", "risky", "hazard", "hazardous", "harmful", "unsafe", "avoid"),
            "Says warning, be careful, dangerous, risk, avoid and the like.",
            "Be careful, it is hot.", "It is warm.", english=True),
    f.share("advises", "gives advice", ADVICE,
            "Says should, recommend, consider, make sure, you can and the like.",
            "You should rest.", "Rest heals.", english=True),
    f.rate("advising_words", "advising words", ADVICE,
           "Should, recommend, consider, make sure, you can and the like, per 100 words.",
           "You should consider rest.", "You should rest at home today.", english=True),
    f.share("asks_back", "asks to clarify, or a question about you",
            r"\b(?:could|can|would) you (?:please )?(?:\w+ )?(?:provide|clarify|specify|tell|share|explain|give"
            r"|describe"
            r"|elaborate|rephrase|confirm)\b|\bplease (?:provide|clarify|specify|tell me|share|rephrase|give me)\b"
            r"|\bi(?:'d| would)? need (?:\w+ )?(?:more|additional|further) (?:context|information|details)\b"
            r"|\b(?:what|which|how|do|are|did|have|is) (?:\w+ ){0,4}(?:you|your)\b[^.!?\n]{0,80}\?",
            "Asks to clarify or to provide something, or asks a question about you.",
            "Could you clarify which city?", "It is clear which city it was.", of="folded", english=True),
    f.share("agrees", "agrees with the person",
            r"\b(?:you're|you are) (?:\w+ )?(?:right|correct|spot on)|\bi (?:\w+ )?agree\b|\bgood point\b"
            r"|\bthat's (?:\w+ )?(?:right|correct|true)"
            r"|\bthat is (?:right|correct|true)|\bexactly[!.]|\b(?:valid|great|fair) point\b",
            "Says you are right, I agree, good point and the like.",
            "You're absolutely right.", "The angle is right.", of="folded", english=True),
    f.share("contradicts", "contradicts the person",
            r"\bi (?:\w+ )?disagree\b|\b(?:that's|that is|this is|it's|it is) (?:\w+ )?(?:not (?:\w+ )?(?:true"
            r"|correct|accurate|right)|incorrect|false|"
            r"wrong|inaccurate|a (?:common )?(?:myth|misconception))|\b(?:you're|you are) (?:\w+ )?(?:mistaken"
            r"|wrong)|\bcontrary to\b"
            r"|\bmisconception\b|\bthere (?:seems|appears) to be (?:a|some) (?:\w+ )?(?:misunderstanding"
            r"|confusion|mistake|error)",
            "Says that is not true, a misconception, I disagree, contrary to and the like.",
            "That's not correct: it is 12.", "It is 12.", of="folded", english=True),
    f.share("contrasts", "contrasts with however or but", CONTRASTS,
            "Says however, but, although, nevertheless and the like.",
            "It rains, but we go.", "It rains and we go.", english=True),
    f.rate("contrasting_words", "contrasting words", CONTRASTS,
           "However, but, although, nevertheless and the like, per 100 words.",
           "However, it rains, but we go.", "It rains, but we go out anyway.", english=True),
    f.share("both_sides", "sets out both sides",
            ("on the other hand", "on one hand", "on the one hand", "pros and cons", "advantages and disadvantages",
             "both sides of the", "some argue", "some people argue", "some people believe", "some believe",
             "others argue", "others believe", "critics", "proponents"),
            "Says on the one hand, pros and cons, some argue, critics and the like.",
            "Some argue that it helps.", "It helps.", english=True),
    f.share("gives_examples", "gives examples",
            ("for example", "for instance", "e.g.", "such as", "as an example", "an example of", "to illustrate", "eg"),
            "Says for example, for instance, e.g., such as and the like.",
            "Eat fruit, for example figs.", "Eat fruit.", english=True),
    f.share("eg_ie", "says e.g. or i.e.", ("e.g.", "i.e."),
            "Says e.g. or i.e.",
            "Eat fruit (e.g. figs).", "Eat fruit, for example figs."),
    f.share("gives_reasons", "gives reasons",
            ("because", "since", "therefore", "thus", "hence", "due to", "as a result", "the reason", "this is why",
             "that's why", "so that", "consequently"),
            "Says because, therefore, due to, as a result and the like.",
            "Go early, because it rains.", "Go early. It rains.", english=True),
    f.share("moralizes", "moralizes",
            ("unethical", "not ethical", "immoral", "morally", "illegal", "unlawful", "inappropriate",
             "not appropriate", "disrespectful", "be respectful", "respectful and", "offensive", "stereotypes",
             "discriminatory", "responsibly", "not acceptable", "never acceptable", "against the law",
             "ethical considerations"),
            "Says unethical, illegal, inappropriate, disrespectful, responsibly, never acceptable and the like.",
            "That would be unethical.", "He is responsible for it.", english=True),
    f.share("stresses", "says that something is important",
            r"\b(?:it's|it is|is also|are) (?:\w+ )?(?:important|crucial|essential|vital|critical|worth noting"
            r"|imperative|necessary) "
            r"(?:to|that|for)\b|\b(?:it's|it is) worth (?:noting|mentioning|remembering)|\bkeep in mind\b"
            r"|\b(?:please|do) (?:note|remember)\b"
            r"|\bimportantly\b|\bbear in mind\b|\bnote that\b",
            "Says it's important to, it is worth noting, keep in mind, note that and the like.",
            "It's important to rest.", "Rest is good.", of="folded", english=True),
    f.share("feels_with_you", "shows sympathy",
            r"\bsorry to hear\b|\bi (?:\w+ )?(?:understand|know) (?:how|that (?:you|this|it))|\bthat (?:must"
            r"|sounds) (?:be )?(?:\w+ )?"
            r"(?:hard|tough|difficult|frustrating|stressful|painful|terrible|upsetting)|\byou(?:'re"
            r"| are) not alone\b|(?:is|'s|ly) understandable\b"
            r"|\bi can (?:imagine|understand|see (?:how|why))|\bmy (?:\w+ )?condolences|\bheart goes out"
            r"|\bit's (?:okay|ok"
            r"|normal|natural) to\b",
            "Says sorry to hear, I understand how you feel, that must be hard and the like.",
            "I'm sorry to hear that.", "I hear that.", of="folded", english=True),
    f.share("encourages", "encourages",
            r"\byou(?:'ve| have) got this\b|\bgood (?:job|luck|work)\b|\bgreat (?:job|work)\b|\bwell done\b"
            r"|\bcongratulations\b|\bkeep (?:going|it up)\b"
            r"|\bdon't give up\b|\bbelieve in yourself\b|\byou can do (?:it|this)(?=[.!,])|\bproud of\b|\bkeep up\b"
            r"|\bdon't be afraid\b|\bdon't worry\b",
            "Says well done, good luck, you can do it, don't worry and the like.",
            "Well done! You can do it.", "It can be done.", of="folded", english=True),
    f.share("sums_up", "says in summary, in conclusion or overall",
            ("in summary", "in conclusion", "to summarize", "to summarise", "to sum up", "overall", "ultimately",
             "in short", "all in all", "to conclude", "in essence"),
            "Says in summary, in conclusion, overall, ultimately and the like, wherever it stands.",
            "Overall, it rains.", "It rains.", english=True),
)  # fmt: skip
