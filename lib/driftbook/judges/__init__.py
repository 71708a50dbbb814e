"""Who says how much a text shows what a hypothesis says, a file each: its parameters, how it opens, what shapes its
verdicts, what they cost, and how it scores.

What a kind computes with is imported as it scores, so that parameters are read without it.

A new kind is a file like these and a line here (``docs/add-judge.md``). The first is the one that a parameter file need
not name.
"""

# isort: off
from driftbook.judges.lexicon import Lexicon as Lexicon
from driftbook.judges.embedding import Embedding as Embedding
from driftbook.judges.nli import Nli as Nli
from driftbook.judges.local import Local as Local
from driftbook.judges.endpoint import Endpoint as Endpoint
