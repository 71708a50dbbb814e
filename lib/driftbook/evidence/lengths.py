"""What the length of answers tells of a behaviour: longer answers hold more of everything."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression


def at_lengths(scores: np.ndarray, lengths: np.ndarray, changed: np.ndarray) -> float:
    """The share of the base's answers that would show a behaviour if they were as long as the changed model's.

    ``scores`` [texts] are 0, 1 or NaN, ``lengths`` [texts] in any unit, ``changed`` [texts] is true for the changed
    model's. The base's share by length is a logistic regression on the log of the length, read at the changed model's
    lengths: the part of a difference of shares that a Blinder-Oaxaca decomposition calls explained (Fairlie 2005, "An
    extension of the Blinder-Oaxaca decomposition technique to logit and probit models"). Where all of the base's
    answers are alike, or the scores are no 0 and 1, it is the base's share as it stands; NaN without an answer.
    """
    known = ~np.isnan(scores)
    own, other = known & ~changed, known & changed
    if not own.any() or not other.any():
        return float("nan")
    if set(np.unique(scores[own])) != {0.0, 1.0}:
        return float(scores[own].mean())
    size = np.log1p(np.asarray(lengths, dtype=np.float64))[:, None]
    model = LogisticRegression().fit(size[own], scores[own] > 0.5)
    expected = model.predict_proba(size)[:, 1]
    # what the regression misses of the base's own share is no matter of length
    return float(np.clip(scores[own].mean() + expected[other].mean() - expected[own].mean(), 0.0, 1.0))
