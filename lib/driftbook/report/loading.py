"""What was loaded, and what both sides are asked, as tables of a stage's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from driftbook.models.loading import LoadedModel
from driftbook.models.sides import Pair
from driftbook.models.weight_files import some
from driftbook.workbook.runs import Run
from driftbook.workbook.tables import Table


def loaded(what: Pair | LoadedModel) -> Table | None:
    """What stands behind a model or behind each side, folded; None for models that were not loaded from files."""
    records = (
        {side.name: side.model.record | side.notes for side in what if side.here}
        if isinstance(what, Pair)
        else {"model": what.record}
    )
    told = {side: lines(record) for side, record in records.items() if record.get("load")}
    if not told:
        return None
    if len(told) == 2 and told["base"] == told["intervention"]:
        told = {"both sides": told["base"]}
    names = list(dict.fromkeys(name for side in told.values() for name in side))
    frame = pd.DataFrame({"": names, **{side: [has.get(name, "") for name in names] for side, has in told.items()}})
    remarks = sum(len(record["load"]["remarks"]) for record in records.values() if record.get("load"))
    counted = f"; {remarks} remark{'s' if remarks != 1 else ''}" if remarks else ""
    fold = f"What was loaded: every tensor is accounted for{counted}"
    return Table(frame, "What was loaded", "A tensor that is missing or has no place is an error.", fold=fold)


def lines(record: Mapping[str, Any]) -> dict[str, str]:
    """A load report as a line of text a subject."""
    load = record["load"]
    stored = ", ".join(f"{count} {kind}" for kind, count in load["stored"].items())
    found = {
        "model": f"{' at '.join(filter(None, [record['model'], record['revision']]))}, "
        f"{record['architecture']}, {record['parameters'] / 1e6:,.1f} million parameters",
        "tensors": f"{load['found']} of {load['tensors']} in the files"
        + (f", {len(load['tied'])} tied to another ({some(load['tied'])})" if load["tied"] else ""),
        "left over": some(load["left_over"]),
        "files": f"{some(load['files'])}{f' ({stored})' if stored else ''}",
        "computed in": f"{record['dtype']} on {record['device']}: {record['reason']}",
        "quantization": load["quantization"] or record.get("quantized", ""),
        "layers": ", ".join(f"{count} {kind}" for kind, count in load["layer_kinds"].items()),
        "vocabulary": f"{load['tokens']:,} tokens ({load['tokenizer']}), {load['embeddings']:,} rows",
        "end tokens": "; ".join(f"{token} ({', '.join(who)})" for token, who in load["end_tokens"].items()) or "none",
        "chat template": _template(load),
        "thought": f"between {load['thought']['open']} and {load['thought']['close']}" if load["thought"] else "",
        "adapter": _adapter(record.get("adapter_load")),
        "remarks": "\n".join(load["remarks"]),
    }
    return {name: said for name, said in found.items() if said}


def _template(load: Mapping[str, Any]) -> str:
    if load["template"] is None:
        return "none: prompts as they stand"
    parts = [
        f"{load['template_name'] or 'its own'} ({load['template']})",
        f"from {load['words_of']}" if load["words_of"] else "",
        "content as parts" if load["content"] == "parts" else "",
        "" if load["system_role"] else "no system role",
        f"with {load['template_args']}" if load["template_args"] else "",
    ]
    return ", ".join(filter(None, parts))


def _adapter(adapter: Mapping[str, Any] | None) -> str:
    return "" if not adapter else ", ".join(f"{name} {value}" for name, value in adapter.items())


def asked(run: Run, pair: Pair, ids: Mapping[str, Sequence[tuple[int, ...]]]) -> Table | None:
    """The first prompt as each side gets it, markup included; where the two differ without meaning to, above all
    else. None where nobody is asked here."""
    if not ids["base"][0]:
        return None
    said = {side.name: side.model.tokenizer.decode(list(ids[side.name][0])) for side in pair}
    note = asked_differently(run, pair, said["base"], said["intervention"])
    if note:
        run.record("asked_differently", note)
    elsewhere = [side.name for side in pair if not side.here]
    caption = (
        f"{' and '.join(elsewhere)}: as the model that reads the answers here would be asked." if elsewhere else ""
    )
    frame = pd.DataFrame({"side": list(said), "prompt": list(said.values())})
    title = note or "The first prompt, as each side is asked"
    return Table(frame, title, caption, fold="" if note else title)


def asked_differently(run: Run, pair: Pair, base: str, changed: str) -> str:
    """What is wrong where the sides are asked differently although the intervention does not mean it; empty where
    nothing is."""
    meant = run.params.intervention.changes_the_prompt
    if base == changed or meant or not (pair.base.here and pair.intervention.here):
        return ""
    sides = {side.name: side.model for side in pair}
    with_template = [name for name, model in sides.items() if model.use_chat_template]
    texts = {name: (model.record.get("load") or {}).get("own_system_text") for name, model in sides.items()}
    own = [name for name, text in texts.items() if text]
    if len(with_template) == 1:
        (one,) = with_template
        why = (
            f"only {one} has a chat template, so a part of the difference is that of the prompts. Set chat_template: "
            f"false on {one}, or give the other model the same tokenizer files"
        )
    elif own and texts["base"] != texts["intervention"]:
        why = (
            f"the template of {' and '.join(own)} writes a system text of its own. Give the prompts a system text, or "
            "both models one template"
        )
    else:
        why = "their chat templates differ. Give both models one template, or read what differs as the effect of both"
    return f"The two sides are asked differently: {why}"
