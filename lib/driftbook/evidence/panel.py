"""The panel: every behaviour of the catalogue, read in every answer, on both sides."""

from __future__ import annotations

import pandas as pd

from driftbook.behaviours.catalogue import panel
from driftbook.behaviours.measure import values
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.evidence.counting import count
from driftbook.evidence.material import Material
from driftbook.evidence.outcomes import strongest_first
from driftbook.parameters import Validate

COLUMNS = (
    *("behaviour", "measure", "kind", "unit", "base", "intervention", "difference", "low", "high"),
    *("e_value", "q_value", "prompts", "declined_base", "declined_intervention", "said"),
)


def hypotheses() -> list[Hypothesis]:
    """Each behaviour of the catalogue, of either side: named before anybody looked."""
    return [Hypothesis(m.label, "either", proposer="panel", measure=m.spec) for m in panel()]


def readings(texts: pd.DataFrame) -> pd.DataFrame:
    """``behaviours.parquet``: ``text_id`` and a float32 column for each behaviour, NaN where a text was declined.

    ``texts``: text_id, text, prompt (the text of the prompt).
    """
    measures = panel()
    read = values(measures, texts["text"].tolist(), texts["prompt"].tolist())
    table = pd.DataFrame(read.astype("float32"), columns=[m.name for m in measures])
    return pd.concat([texts[["text_id"]].reset_index(drop=True), table], axis=1)


def table(texts: pd.DataFrame, read: pd.DataFrame, seed: int, alpha: float = 0.05) -> pd.DataFrame:
    """``panel.parquet``: one row a behaviour, those that moved first. ``q_value`` is corrected over the panel alone;
    what is confirmed is decided in *validate*, over panel and proposals together."""
    found = count(Material(texts, {}, hypotheses(), seed), Validate(alpha=alpha), alpha, read)
    rows = [
        (
            *(o.hypothesis.text, o.measure.name, o.measure.family, o.measure.unit, o.base, o.intervention),
            *(o.difference.estimate, o.difference.low, o.difference.high, o.e_value, o.q_value, len(o.x)),
            *(o.declined("base"), o.declined("intervention"), o.sentence),
        )
        for o in strongest_first(found)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))
