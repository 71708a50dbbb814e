"""How likely a side finds given responses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from driftbook.models.replay import TokenSequence, response_likelihoods
from driftbook.models.sides import Side


def log_likelihood(side: Side, sequences: Sequence[TokenSequence], max_tokens: int = 2048) -> np.ndarray:
    """Log-probability (nats) of each whole response after its prompt under one side, [sequences]; 0 for an empty one.

    Raises BudgetError for a sequence longer than the model's context.
    """
    out = np.zeros(len(sequences))
    for i, told in response_likelihoods(side.read(sequences, logits=True, max_tokens=max_tokens), sequences):
        out[i] = float(told.sum())
    return out
