"""Every shipped trait beside directions of shuffled labels: how it reads, and what pushing along it does to text."""

from __future__ import annotations

import pandas as pd


def table(chosen: pd.DataFrame, slopes: pd.DataFrame, null_slopes: pd.DataFrame) -> pd.DataFrame:
    """One row per trait: how it reads (``chosen``, of the traits stage), what pushing does to its text and to the
    text's own projection (:func:`driftbook.models.doses.dose_slopes`), and what a null direction does."""
    out = chosen[["trait", "layer", "heldout_auc", "null_auc", "layer0", "length", "words"]].set_index("trait")
    for prefix, table in (("", slopes), ("null_", null_slopes)):
        for measure in ("lexicon", "projection"):
            mine = table[table.measure == measure].set_index("trait")
            for name, column in (("", "slope"), ("_low", "low"), ("_high", "high")):
                out[f"{prefix}{measure}{name}"] = mine[column].reindex(out.index)
    out["coefficients"] = slopes.drop_duplicates("trait").set_index("trait").coefficients.reindex(out.index)
    return out.assign(moves_text=out.lexicon_low > 0).reset_index()


def title(result: pd.DataFrame) -> str:
    """What the picture of slopes shows, in words."""
    still = result[~result.moves_text].trait.tolist()
    text = f"Pushing moves the text of {int(result.moves_text.sum())} of {len(result)} traits"
    return f"{text}, not clearly that of {', '.join(still)}" if still else text


def metrics(result: pd.DataFrame) -> dict[str, float]:
    """The numbers of :func:`table` for ``metrics.json``."""
    out: dict[str, float] = {
        "traits": len(result),
        "traits_with_auc_of_80": int((result.heldout_auc >= 0.8).sum()),
        "traits_that_move_text": int(result.moves_text.sum()),
        "traits_that_move_own_projection": int((result.projection_low > 0).sum()),
        "null_directions_that_move_text": int((result.null_lexicon_low > 0).sum()),
        "null_directions_that_move_own_projection": int((result.null_projection_low > 0).sum()),
        "null_auc": float(result.null_auc.mean()),
    }
    for row in result.to_dict("records"):
        for name in ("heldout_auc", "null_auc", "words", "lexicon", "lexicon_low", "lexicon_high", "projection"):
            out[f"{name if name != 'words' else 'words_auc'}_{row['trait']}"] = row[name]
    return out


def answer(result: pd.DataFrame) -> str:
    """What :func:`table` says in two sentences."""
    good, moved = result.heldout_auc >= 0.8, result.moves_text
    still = result[~moved].trait.tolist()
    text = (
        f"{int(good.sum())} of {len(result)} traits tell unseen scenarios apart with an AUC of 0.8 or more (shuffled "
        f"labels: {result.null_auc.mean():.2f}); pushing along {int(moved.sum())} of them changes what the text says"
    )
    return f"{text}, along {', '.join(still)} not clearly." if still else f"{text}."
