"""What an answer does, as measures in plain units: the catalogue, words and patterns, and functions of the user."""

from driftbook.behaviours.catalogue import measure_from, panel
from driftbook.behaviours.measure import (
    Measure,
    Unit,
    declined,
    describe,
    pattern_measure,
    python_measure,
    values,
    words_measure,
)
from driftbook.behaviours.words import Reading, closing, fold, opening, sentences, words

__all__ = [
    "Measure",
    "Reading",
    "Unit",
    "closing",
    "declined",
    "describe",
    "fold",
    "measure_from",
    "opening",
    "panel",
    "pattern_measure",
    "python_measure",
    "sentences",
    "values",
    "words",
    "words_measure",
]
