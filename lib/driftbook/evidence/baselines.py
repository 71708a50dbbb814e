"""Trivial rivals of a claim: what tells the two sides apart without knowing what changed.

Four of them: a classifier over words, one over embeddings, the length of a text, and a judge without a label. They
learn on split discover and are put to the same held-out texts as the claim. Three figures stand beside each: its AUC,
the share of it that the claim alone reaches, and what is left of the claim when the rival's score is held fixed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.preprocessing import StandardScaler

from driftbook.behaviours.measure import Words
from driftbook.behaviours.words import fold
from driftbook.discovery.hypotheses import features, tokenize
from driftbook.evidence.intervals import Interval, auc_resamples, resample_counts

NAMES = {
    "words": "words, counted",
    "embeddings": "embeddings",
    "length": "length of the text",
    "judge": "judge without a label",
    "coherence": "coherence",
}


def _fit_and_score(train, changed: np.ndarray, test) -> np.ndarray:
    # lbfgs is deterministic; its limit of steps only matters for data that can be told apart perfectly
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train, changed)
    return model.decision_function(test)


class BagOfWords:
    """Logistic regression over words and phrases, higher for the intervention's side.

    ``train`` and ``test``: (text, prompt) pairs; words of the prompt are not counted. ``changed``: [train] booleans.
    """

    def __init__(
        self,
        train: Sequence[tuple[str, str]],
        changed: np.ndarray,
        test: Sequence[tuple[str, str]],
        min_texts: int = 3,
    ) -> None:
        counts = CountVectorizer(analyzer=lambda pair: sorted(features(*pair)), binary=True, min_df=min_texts)
        self.changed, self.texts = np.asarray(changed), len(test)
        self.known: dict[tuple[str, ...], np.ndarray] = {}
        try:
            self.train = counts.fit_transform(list(train))
        except ValueError:  # scikit-learn's word for an empty vocabulary
            self.terms: list[str] = []
            return
        self.test = counts.transform(list(test))
        self.terms = [str(t) for t in counts.get_feature_names_out()]

    def scores(self, without: Sequence[str] = ()) -> np.ndarray:
        """Scores of the held-out texts, [test], by words and phrases that hold none of the words ``without``.

        All equal when no word is frequent enough to learn from.
        """
        wanted = tuple(sorted(without))
        if wanted not in self.known:
            own = Words(wanted) if wanted else None
            keep = np.array([own is None or not own.found(fold(t)) for t in self.terms], dtype=bool)
            if keep.any():
                self.known[wanted] = _fit_and_score(self.train[:, keep], self.changed, self.test[:, keep])
            else:
                self.known[wanted] = np.zeros(self.texts)
        return self.known[wanted]


def embedding_classifier(train: np.ndarray, changed: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Scores [test] of held-out embeddings by logistic regression over standardized embeddings [train, d] and [test,
    d]."""
    scale = StandardScaler().fit(train)
    return _fit_and_score(scale.transform(train), np.asarray(changed), scale.transform(test))


def length_scores(train: Sequence[str], changed: np.ndarray, test: Sequence[str]) -> np.ndarray:
    """Words per held-out text, [test], with the sign that split discover gives it: higher for the intervention's
    side."""
    counted = np.array([len(tokenize(t)) for t in train], dtype=np.float64)
    changed = np.asarray(changed)
    longer = counted[changed].mean() >= counted[~changed].mean()
    return np.array([len(tokenize(t)) for t in test], dtype=np.float64) * (1 if longer else -1)


@dataclass(frozen=True)
class Rivals:
    """Scores of the rivals for held-out texts, by text id; higher for the intervention's side.

    ``words`` can leave a claim's own words out; ``others`` maps a name of ``NAMES`` to its scores, which may lack
    texts that it did not read.
    """

    ids: list[str]
    words: BagOfWords
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def scores(self, text_ids: Sequence[str], without: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Name of the rival to its scores of these texts, NaN where it has none; ``words`` leaves some words out."""
        place = {name: i for i, name in enumerate(self.ids)}
        found = {"words": self.words.scores(without)[[place[i] for i in text_ids]]}
        for name, table in self.others.items():
            found[name] = np.array([table.get(i, np.nan) for i in text_ids], dtype=np.float64)
        return found


class Beside(NamedTuple):
    """A claim beside one rival, on the same texts; intervals resample prompts."""

    auc: Interval  # of the rival
    share: Interval  # of the rival's AUC beyond 1/2 that the claim reaches; NaN where the rival tells nothing apart
    correlation: float  # of the claim's score with the side
    left: Interval  # the same with the rival's score held fixed
    unrelated: float  # what would be left of a claim that has nothing to do with the rival but the side

    @property
    def verdict(self) -> str:
        """``adds``: something is left of the claim. ``explained``: nothing is shown to be left, and less than half of
        what an unrelated claim would keep can be. ``open``: these texts do not tell, for instance because the rival
        leaves hardly a text in doubt."""
        if self.left.low > 0:
            return "adds"
        return "explained" if self.left.high < self.unrelated / 2 else "open"


def beside(
    scores: np.ndarray,
    up: np.ndarray,
    rival: np.ndarray,
    prompts: np.ndarray,
    alpha: float = 0.05,
    resamples: int = 1000,
    seed: int = 0,
) -> Beside:
    """A claim's ``scores`` beside a ``rival``'s; arguments as [texts], ``up`` where the text is of the claimed side.

    What is left is a partial correlation: score and side are each predicted from the rival's score (a cubic in its
    rank, cross-fitted over prompts), and what the predictions miss is correlated. It is zero where the rival's score
    is all that score and side have in common: the generalised covariance measure of Shah & Peters (2020), "The
    hardness of conditional independence testing and the generalised covariance measure", Annals of Statistics 48(3).
    Raises ValueError for missing scores or one side only.
    """
    scores, rival, up = np.asarray(scores, float), np.asarray(rival, float), np.asarray(up, bool)
    one = auc_resamples(scores, up, prompts, resamples, seed)
    two = auc_resamples(rival, up, prompts, resamples, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(two > 0.5, (one - 0.5) / (two - 0.5), np.nan)
    ids, inverse = np.unique(np.asarray(prompts), return_inverse=True)
    weights = np.concatenate([np.ones((1, len(ids)), np.int32), resample_counts(len(ids), resamples, seed)])
    a, b = _residual(scores, rival, inverse, False), _residual(up.astype(float), rival, inverse, True)

    def per_prompt(values: np.ndarray) -> np.ndarray:
        return weights @ np.bincount(inverse, values, len(ids))

    spread = np.sqrt(per_prompt(a * a) * per_prompt(b * b))
    left = np.divide(per_prompt(a * b), spread, out=np.zeros(len(spread)), where=spread > 0)
    varies = scores.std() > 0
    correlation = float(np.corrcoef(scores, up)[0, 1]) if varies else 0.0
    unrelated = correlation * min(1.0, float(np.sqrt(np.mean(b * b)) / up.std()))
    return Beside(_interval(two, alpha), _interval(share, alpha), correlation, _interval(left, alpha), unrelated)


def _interval(drawn: np.ndarray, alpha: float) -> Interval:
    """The estimate (first entry) with the percentiles of the rest; NaN throughout where most of them are."""
    if np.isnan(drawn[0]) or np.isnan(drawn[1:]).mean() > 0.5:
        return Interval(np.nan, np.nan, np.nan)
    low, high = np.nanquantile(drawn[1:], [alpha / 2, 1 - alpha / 2])
    return Interval(float(drawn[0]), float(low), float(high))


def _residual(target: np.ndarray, given: np.ndarray, group: np.ndarray, binary: bool, folds: int = 5) -> np.ndarray:
    """What a cubic in the rank of ``given`` misses of ``target``; each fold of groups is predicted by the others."""
    rank = (rankdata(given) - 0.5) / len(given) * 2 - 1
    rows = np.stack([rank, rank**2, rank**3], axis=1)
    missed, fold = np.empty(len(target)), group % min(folds, int(group.max()) + 1)
    for k in np.unique(fold):
        learn, test = fold != k, fold == k
        if not learn.any() or np.ptp(target[learn]) == 0:
            missed[test] = target[test] - (target[learn].mean() if learn.any() else target.mean())
        elif binary:
            model = LogisticRegression(C=10.0, solver="newton-cholesky").fit(rows[learn], target[learn] > 0.5)
            missed[test] = target[test] - model.predict_proba(rows[test])[:, 1]
        else:
            missed[test] = target[test] - LinearRegression().fit(rows[learn], target[learn]).predict(rows[test])
    return missed


def together(scores: np.ndarray, changed: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """One score per text out of several claims' scores [texts, claims]: logistic regression, each fifth of the prompts
    predicted by the others. Higher for the intervention's side."""
    _, group = np.unique(np.asarray(prompts), return_inverse=True)
    fold, out = group % min(5, int(group.max()) + 1), np.zeros(len(scores))
    for k in np.unique(fold):
        learn, test = fold != k, fold == k
        if learn.any() and 0 < changed[learn].sum() < learn.sum():
            scale = StandardScaler().fit(scores[learn])
            out[test] = _fit_and_score(scale.transform(scores[learn]), changed[learn], scale.transform(scores[test]))
    return out
