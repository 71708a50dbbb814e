"""The pictures, tables and sentences of a *series*, in the order in which the notebook shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from driftbook import numbers
from driftbook.parameters import Member
from driftbook.series import Change, lacking
from driftbook.workbook.figure import Figure, chart, floats
from driftbook.workbook.figures import curve
from driftbook.workbook.runs import Run, read_json
from driftbook.workbook.tables import Table
from driftbook.workbook.theme import BASE, GREY, INTERVENTION, band, theme
from driftbook.workbook.wording import plain, shorten

MULTIPLES, ROW, HEAD = 6, 120, 34  # small charts below each other; pixels of each, and of them above the chart
WIDEST = 8  # changes beside each other whose cells are wide enough for a number, also on a phone
SCALE = {  # above the cells: beside them it would take a phone's half
    "orientation": "h", "thickness": 10, "len": 0.6, "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom",
    "title": {"text": "net share of prompts that moved", "side": "top", "font": {"size": 12}},
}  # fmt: skip
MAP_POINTS = 1500  # of each change that are drawn


def changes(run: Run, found: Sequence[Change], apart: pd.DataFrame, shifts: pd.DataFrame) -> Table:
    """What was compared, what each change's own report says, and what of it could not be measured."""
    done: dict[str, Member] = {m.name: m for m in run.params.members}
    rows = []
    for change in found:
        record = read_json(change.folder / "validate" / "run.json")
        said = (record.get("verdict") or {}).get("lines") or [record.get("answer", "")]
        about = done[change.name]
        what = about.intervention.by().removeprefix("when ")
        row = {"change": change.name, "what was done": what, "its own report": said[0]}
        rows.append(({"number": about.number} if change.numbered else {}) | row)
        rows[-1]["could not be measured"] = lacking(change, apart, shifts) or "nothing"
    absent = [m.name for m in run.params.members if m.name not in {c.name for c in found}]
    left = f" Without a good run, so left out: {', '.join(absent)}." if absent else ""
    return Table(pd.DataFrame(rows), "The changes", f"Each has its own report in members/<name>/index.html.{left}")


def matrix(run: Run, read: pd.DataFrame) -> Figure | None:
    """Behaviours by changes, coloured by the net share of prompts that moved, which compares units."""
    shown = _shown(read, run.section.shown)
    if not shown:
        return None
    names = list(dict.fromkeys(read["change"]))
    grid = read.pivot(index="hypothesis_id", columns="change", values="size").loc[shown, names].to_numpy(np.float64)
    reach = np.ceil(100 * float(np.nanmax(np.abs(grid)))) / 100 or 1.0
    rows, columns = {name: i for i, name in enumerate(shown)}, {name: i for i, name in enumerate(names)}
    hover, notes, labels = np.full(grid.shape, "", dtype=object), [], [""] * len(rows)
    for one in read[read["hypothesis_id"].isin(shown)].itertuples():
        row, column, value = rows[one.hypothesis_id], columns[one.change], _value(one.changed, one.unit)
        labels[row] = plain(f"{shorten(one.behaviour, 34)} ({_value(one.base, one.unit)})")
        hover[row, column] = plain(f"{one.behaviour} at {one.change}: {value} ({_move(one.difference, one.unit)})")
        if one.told:
            notes.append(_tag(column, row, value if len(names) <= WIDEST else "●"))
    heat = go.Heatmap(
        z=floats(grid), x=[*columns.values()], y=[*rows.values()], zmin=-reach, zmax=reach, xgap=1, ygap=1, text=hover,
        colorbar=SCALE, hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    x = {"tickvals": [*columns.values()], "ticktext": _ticks(run, names), "range": [-0.5, len(names) - 0.5]}
    y = {"tickvals": [*rows.values()], "ticktext": labels, "range": [len(rows) - 0.5, -0.5], "showgrid": False}
    x |= {"showgrid": False, "title": {"text": _axis(run), "standoff": 34}}  # from the axis: below its labels
    figure = chart([heat], height=150 + 20 * len(labels), x=x, y=y, annotations=notes)
    ids, told = read["hypothesis_id"], read[read["told"]]
    title = f"{told['hypothesis_id'].nunique()} of {ids.nunique()} behaviours are told to move"
    title += f", the first at {told.loc[told['x'].idxmin(), 'change']}" if len(told) else ""
    mark = "A number in a cell: the value there" if len(names) <= WIDEST else "A dot"
    caption = (
        "In brackets the base's value. Colour: share of prompts whose answers show more of it, less the share that "
        f"shows less. {mark}, where it is told over the whole series (Holm, {len(read):,} tests: a chance of "
        f"{run.section.alpha:.0%} at most that any is false). {int(read['prompts'].max()):,} prompts. The "
        f"{len(labels)} that move most, in the order in which they are first told."
    )
    strongest = read.loc[read["size"].abs().idxmax()]
    alt = f"Heat map, {len(labels)} behaviours by {len(names)} changes; most at {strongest['change']}: "
    alt += f"{strongest['claim']}."
    return Figure(figure, title, caption, alt, cells(read, shown), best=True)


def _tag(x: int, y: int, text: str) -> dict[str, object]:
    """A short text on a cell, on the colour of the paper, so that it reads on every colour."""
    ink, paper = theme()["light"]["ink"], theme()["light"]["paper"]
    about = {"x": x, "y": y, "xref": "x", "yref": "y", "showarrow": False, "borderpad": 1, "bgcolor": paper}
    return about | {"text": plain(text), "font": {"size": 11, "color": ink}}


def cells(read: pd.DataFrame, shown: Sequence[str]) -> pd.DataFrame:
    """A row a behaviour, a column a change: the value there and its difference from the base, * where it is told."""
    rows = []
    for name in shown:
        own = read[read["hypothesis_id"] == name].set_index("change")
        first = own.iloc[0]
        row = {"behaviour": first["behaviour"], "base": _value(first["base"], first["unit"])}
        for change in dict.fromkeys(read["change"]):
            if change in own.index:
                one = own.loc[change]
                said = f"{_value(one['changed'], one['unit'])} ({_move(one['difference'], one['unit'])}"
                said += f", {_move(one['low'], one['unit'])} to {_move(one['high'], one['unit'])})"
                row[change] = said + (" *" if one["told"] else "")
        rows.append(row)
    return pd.DataFrame(rows)


def values(run: Run, read: pd.DataFrame) -> Table:
    """The numbers behind the matrix."""
    caption = "In brackets the difference from the base with its 95% interval, of shares in points. A star: told."
    return Table(cells(read, _shown(read, run.section.shown)), "Every behaviour at every change", caption)


def multiples(run: Run, read: pd.DataFrame, first: pd.DataFrame) -> Figure | None:
    """The behaviours that moved most, along the axis of the series."""
    ids = first.loc[first["most"].abs().sort_values(ascending=False, kind="stable").index, "hypothesis_id"][:MULTIPLES]
    if not len(ids):
        return None
    traces, layout, notes = [], {}, []
    for number, name in enumerate(ids):
        own = read[read["hypothesis_id"] == name].sort_values("x")
        scale = 100 if own["unit"].iloc[0] == "share" else 1
        axis = "" if number == 0 else str(number + 1)
        x, base = floats(own["x"]), own["base"].to_numpy() * scale
        wide, moved = own["band"].to_numpy() * scale, own["difference"].to_numpy() * scale
        least = -np.inf if own["unit"].iloc[0] == "score" else 0.0
        on = {"xaxis": f"x{axis}", "yaxis": f"y{axis}", "showlegend": False, "hoverinfo": "skip"}
        none = {"mode": "lines", "line": {"width": 0}} | on
        traces += [
            go.Scatter(x=x, y=floats(np.maximum(base - wide, least)), **none),
            go.Scatter(x=x, y=floats(base + wide), fill="tonexty", fillcolor=band(GREY), **none),
            go.Scatter(x=x, y=floats(base + own["low"] * scale), **none),
            go.Scatter(x=x, y=floats(base + own["high"] * scale), fill="tonexty", fillcolor=band(INTERVENTION), **none),
            go.Scatter(x=x, y=floats(base), mode="lines", line={"color": BASE, "dash": "dash", "width": 1.5}, **on),
            go.Scatter(x=x, y=floats(base + moved), mode="lines+markers", line={"color": INTERVENTION, "width": 2},
                       marker={"size": 6}, **{**on, "hoverinfo": "all"}),
        ]  # fmt: skip
        last, top, bottom = number + 1 == len(ids), 1 - number / len(ids), 1 - (number + 1) / len(ids)
        room = HEAD / (ROW * len(ids))  # above each, for its name
        under = {"showticklabels": last, "title": {"text": _axis(run) if last else ""}}
        if any(m.number is None for m in run.params.members):
            under |= {"tickvals": x, "ticktext": [plain(n) for n in own["change"]]}
        layout[f"xaxis{axis}"] = {"anchor": f"y{axis}", "showgrid": False} | under
        layout[f"yaxis{axis}"] = {"domain": [bottom, top - room], "anchor": f"x{axis}", "nticks": 4}
        title = f"{shorten(own['behaviour'].iloc[0], 34)}, {_unit(own['unit'].iloc[0])}"
        notes.append({"text": plain(title), "x": 0, "y": top - room, "xref": "paper", "yref": "paper",
                      "xanchor": "left", "yanchor": "bottom", "showarrow": False})  # fmt: skip
    figure = chart(traces, height=70 + ROW * len(ids), x={}, y={})
    figure.update_layout(**layout, annotations=notes, showlegend=False)
    names = first.set_index("hypothesis_id").loc[ids, "behaviour"]
    title = f"{len(ids)} behaviours along the {_axis(run)}, those that moved most"
    caption = (
        "Line: base plus the difference, with its 95% interval. Dashed: the base. Grey: differences that would not be "
        f"told over the whole series. {int(read['prompts'].max()):,} prompts."
    )
    shown = read[read["hypothesis_id"].isin(ids)][
        ["behaviour", "change", "x", "base", "changed", "low", "high", "band"]
    ]
    return Figure(figure, title, caption, f"{len(ids)} small line charts: {'; '.join(names)}.", shown)


def began(first: pd.DataFrame, alpha: float) -> Table | None:
    """When each behaviour began to differ; None where none did."""
    if not len(first):
        return None
    rows = [
        {
            "behaviour": r.behaviour, "first told at": r.first, "not told at": r.before or "none before it",
            "base": _value(r.base, r.unit), "there": _value(r.changed, r.unit),
            "difference": f"{_move(r.difference, r.unit)} ({_move(r.low, r.unit)} to {_move(r.high, r.unit)})",
            "p_value": r.adjusted, "changes told": r.changes,
        }
        for r in first.itertuples()
    ]  # fmt: skip
    caption = (
        f"p: Holm over all behaviours and changes: any of these is told where there is no difference with a chance of "
        f"{alpha:.0%} at most. A behaviour may have begun earlier, by less than could be told."
    )
    return Table(pd.DataFrame(rows), "When did it begin?", caption, max_rows=200)


def divergence(run: Run, apart: pd.DataFrame) -> Figure | None:
    """How far the next-token distributions are from the base's; None where that could be measured of no change."""
    known = apart.dropna(subset="js")
    if known.empty:
        return None
    most = known.loc[known["js"].idxmax()]
    return curve(
        _places(run, known), known["js"], low=known["low"], high=known["high"],
        title=f"Next-token distributions are farthest from the base's at {most['change']}: "
        f"{numbers.number(most['js'])} nats a token",
        caption=f"Mean JS over {int(known['prompts'].max()):,} prompts, 95% intervals. The same model gives 0.",
        x_title=_axis(run), y_title="JS, nats a token", reference=0.0, height=300,
    )  # fmt: skip


def traits(run: Run, shifts: pd.DataFrame) -> Figure | None:
    """Trait shifts along the same axis; None where no activations could be read."""
    if shifts.empty:
        return None
    most = shifts.loc[shifts["shift"].abs().idxmax()]
    return curve(
        _places(run, shifts), shifts["shift"], low=shifts["low"], high=shifts["high"], groups=shifts["trait"].tolist(),
        title=f"{most['trait']} moves most, by {numbers.fixed(most['shift'], 1, signed=True)} at {most['change']}",
        caption="Own text, at each trait's chosen layer and site, in standard deviations of directions that mean "
        "nothing (2 is what one of them reaches once in twenty tokens); 95% intervals over prompts.",
        x_title=_axis(run), y_title="shift, null sd", reference=0.0,
    )  # fmt: skip


def maps(drawn: Mapping[str, pd.DataFrame], seed: int) -> Figure | None:
    """The map of each change's answers, one at a time; None where no change has one."""
    if not drawn:
        return None
    traces, counts = [], []
    for index, (name, table) in enumerate(drawn.items()):
        counts.append({"change": name, "answers": len(table)})
        table = table.sample(min(len(table), MAP_POINTS), random_state=seed)
        for side, hue in (("base", BASE), ("intervention", INTERVENTION)):
            own = table[table["side"] == side]
            marker = {"color": hue, "size": 4, "symbol": "circle" if side == "base" else "diamond"}
            said = {"name": "base" if side == "base" else "changed", "mode": "markers", "hoverinfo": "skip"}
            traces.append(go.Scatter(x=floats(own["x"]), y=floats(own["y"]), marker=marker, visible=index == 0,
                                     meta={"choice": index}, **said))  # fmt: skip
    bare = {"showticklabels": False, "showgrid": False, "zeroline": False}
    figure = chart(traces, height=420, x=bare, y=bare)
    caption = f"Answers by meaning, each change beside its base; every map is drawn by itself. Seed {seed}."
    alt = f"Maps of answers of {len(drawn)} changes, one at a time, base and changed in two colours."
    return Figure(figure, "What the answers are about, change by change", caption, alt, pd.DataFrame(counts),
                  choices=tuple(drawn), choice_label="Change")  # fmt: skip


def answer(run: Run, read: pd.DataFrame, first: pd.DataFrame, found: Sequence[Change]) -> str:
    """The answer in one or two sentences: how many behaviours moved, which did first, which most."""
    if not len(read):
        return f"No behaviour could be read at any of {len(found)} changes."
    count = read["hypothesis_id"].nunique()
    if not len(first):
        return f"None of {count} behaviours is told to differ from the base at any of {len(found)} changes."
    one, most = first.iloc[0], first.loc[first["most"].abs().idxmax()]
    said = f"{len(first)} of {count} behaviours are told to differ from the base somewhere in {len(found)} changes."
    said += f" The first is told at {one['first']}: {one['claim']}."
    if most["hypothesis_id"] != one["hypothesis_id"]:
        said += f" What moves most is first told at {most['first']}: {most['behaviour']}."
    return said


def headlines(run: Run, read: pd.DataFrame, first: pd.DataFrame, found: Sequence[Change], apart: pd.DataFrame) -> None:
    """The cards of the page."""
    run.headline("changes", len(found), baseline=f"{len(run.params.members)} in the file")
    tests = f"{read['hypothesis_id'].nunique()} read at each change" if len(read) else "none read"
    run.headline("behaviours that moved", len(first), baseline=tests)
    if len(first):
        run.headline("first told at", first["first"].iloc[0], baseline=first["behaviour"].iloc[0])
    known = apart.dropna(subset="js")
    if len(known):
        most = known.loc[known["js"].idxmax()]
        run.headline(f"JS at {most['change']}", most["js"], most["low"], most["high"], baseline="0 for one model twice")


# ------------------------------------------------------------------------------------------------------------- wording


def _shown(read: pd.DataFrame, most: int) -> list[str]:
    """Ids of the behaviours that move most, told ones first and in the order in which they are."""
    if not len(read):
        return []
    sized = read.assign(size=read["size"].abs(), first=read["x"].where(read["told"]))
    best = sized.groupby("hypothesis_id", sort=False).agg({"told": "max", "size": "max", "first": "min"})
    best = best.sort_values(["told", "size"], ascending=False, kind="stable")[:most]
    return best.sort_values("first", kind="stable").index.tolist()  # those that are not told come last


def _axis(run: Run) -> str:
    """What the axis of the series is called."""
    members = run.params.members
    if any(m.number is None for m in members):
        return "change"
    dumps = [m.intervention.model_dump() for m in members]
    if len({d["kind"] for d in dumps}) == 1:
        fields = [k for k in dumps[0] if len({str(d.get(k)) for d in dumps}) > 1]
        if len(fields) == 1:
            return {"revision": "step", "path": "step", "model": "step"}.get(fields[0], fields[0])
    return "number"


def _ticks(run: Run, names: Sequence[str]) -> list[str]:
    """What the changes are called under an axis that has a name: their numbers, where it says what they are."""
    numbers_of = {m.name: m.number for m in run.params.members}
    if _axis(run) in ("change", "number"):
        return [plain(n) for n in names]
    return [f"{numbers_of[n]:g}" for n in names]


def _places(run: Run, table: pd.DataFrame) -> np.ndarray:
    numbered = all(m.number is not None for m in run.params.members)
    return table["x"].to_numpy() if numbered else table["change"].to_numpy(object)


def _value(value: float, unit: str) -> str:
    return numbers.share(value) if unit == "share" else numbers.fixed(value, 1)


def _move(value: float, unit: str) -> str:
    return numbers.points(value) if unit == "share" else numbers.fixed(value, 1, signed=True).replace("-", "−")


def _unit(unit: str) -> str:
    units = {"share": "% of answers", "number": "an answer", "rate": "per 100 words"}
    return units.get(unit, unit)
