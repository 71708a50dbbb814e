"""Trivial rivals of a hypothesis: classifiers that tell the two sides apart without knowing what changed.

They learn on split discover and are judged on the same held-out texts as the hypothesis. A label that does not beat
them says nothing that counting words or averaging embeddings would not.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from driftbook.discovery.hypotheses import features


def _fit_and_score(train, changed: np.ndarray, test) -> np.ndarray:
    # lbfgs is deterministic; its limit of steps only matters for data that can be told apart perfectly
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train, changed)
    return model.decision_function(test)


def bag_of_words(
    train: Sequence[tuple[str, str]], changed: np.ndarray, test: Sequence[tuple[str, str]], min_texts: int = 3
) -> np.ndarray:
    """Scores of held-out texts by logistic regression over words and phrases, higher for the intervention's side.

    ``train`` and ``test``: (text, prompt) pairs; words of the prompt are not counted. ``changed``: [train] booleans.
    Returns [test]; all equal when no word is frequent enough to learn from.
    """
    counts = CountVectorizer(analyzer=lambda pair: sorted(features(*pair)), binary=True, min_df=min_texts)
    try:
        rows = counts.fit_transform(list(train))
    except ValueError:  # scikit-learn's word for an empty vocabulary
        return np.zeros(len(test))
    return _fit_and_score(rows, np.asarray(changed), counts.transform(list(test)))


def embedding_classifier(train: np.ndarray, changed: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Scores [test] of held-out embeddings by logistic regression over standardized embeddings [train, d] and [test,
    d]."""
    scale = StandardScaler().fit(train)
    return _fit_and_score(scale.transform(train), np.asarray(changed), scale.transform(test))


@dataclass(frozen=True)
class Rivals:
    """Scores of the rivals for held-out texts, by text id; higher for the intervention's side."""

    bow: dict[str, float]
    embedding: dict[str, float]
