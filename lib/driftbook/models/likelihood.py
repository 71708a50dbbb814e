"""How likely a side finds given responses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from driftbook.models.replay import TokenSequence
from driftbook.models.sides import Side


def log_likelihood(side: Side, sequences: Sequence[TokenSequence], max_tokens: int = 2048) -> np.ndarray:
    """Log-probability (nats) of each whole response after its prompt under one side, [sequences]; 0 for an empty one.

    Raises BudgetError for a sequence longer than the model's context.
    """
    out = np.zeros(len(sequences))
    for batch, logits in side.read(sequences, logits=True, max_tokens=max_tokens):
        assert logits is not None
        for row, i in enumerate(batch):
            if n := len(sequences[i].response_ids):
                told = torch.log_softmax(logits[row, -n - 1 : -1].float(), -1)
                said = torch.tensor(sequences[i].response_ids, device=told.device)
                out[i] = float(told.gather(-1, said[:, None]).sum())
    return out
