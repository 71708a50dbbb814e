"""Sides that think, from their first token to the last page: decode, cluster and validate in kernels of their own."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from chat_server import Server
from driftbook.behaviours.words import words
from driftbook.workbook.runner import run_experiment
from thinking_models import taught

ROOT = Path(__file__).parent.parent
THOUGHT = "Perhaps I should ponder."
SAID = {"base": "Yes, it is.", "intervention": "No, never so."}
SLOW = ("safe", "wet")  # what the changed side thinks about for so long that it does not answer
WHAT = "tea sun ice bread snow milk glass paper stone wood salt sugar rice soup fire smoke sand wool silk iron gold"
ASKED = [
    f"Is {what} {('hot', 'near', 'old', 'wet', 'dear', 'safe')[i % 6]}?"
    for i, what in enumerate([*WHAT.split(), *["wind", "mud", "corn", "lead", "moss", "dust", "clay", "zinc"]])
]


def slow(question: str) -> bool:
    return question.rstrip("?").endswith(SLOW)


def thought_of(question: str) -> str:
    return " ".join([THOUGHT] * (4 if slow(question) else 1))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return taught(tmp_path_factory.mktemp("base"), THOUGHT, SAID["base"], questions=ASKED)


def ran(root: Path, base: Path, intervention: str, decode: str = "") -> Path:
    """The outputs of an experiment that was run to the end, in a repository of its own."""
    (root / "params").mkdir()
    (root / "notebooks").symlink_to(ROOT / "notebooks")
    (root / "params/asked.txt").write_text("\n".join(ASKED))
    (root / "params/thinks.yml").write_text(
        f"experiment: thinks\nbase: {{model: {base}, dtype: float32, device: cpu}}\nintervention: {intervention}\n"
        "traits: {files: []}\ncapture: {prompts: [params/asked.txt]}\ndecode: {prompts: [params/asked.txt], "
        "splits: {discover: 0.6, screen: 0.0, validate: 0.4}, samples: 1, max_new_tokens: 12, max_thought_tokens: 40, "
        f"screen: {{tokens: 8}}, sampling: {{strategy: uniform, max_texts: 80, rounds: 1}}{decode}}}\n"
        "cluster: {clusters: 4, bootstraps: 2, resamples: 100, trait_shift: false}\n"
    )
    results = run_experiment(root / "params/thinks.yml", ["validate"], echo=False)
    assert [(r.stage, r.reason) for r in results] == [("decode", ""), ("cluster", ""), ("validate", "")]
    return root / "outputs/thinks"


def check(outputs: Path) -> None:
    """The thought stands in its column and nowhere else; every page tells what share of a side's answers is missing."""
    texts = pd.read_parquet(outputs / "decode/data/texts.parquet").query("strength == 0")
    assert texts.groupby("side").text.unique().map(list).to_dict() == {side: [said] for side, said in SAID.items()}
    assert set(texts.thought) == {THOUGHT}
    missing = pd.read_parquet(outputs / "decode/data/unanswered.parquet").query("strength == 0")
    share = len(missing) / (len(missing) + (texts.side == "intervention").sum())
    assert set(missing.side) == {"intervention"} and 0.2 < share < 0.5
    stages = [outputs / stage for stage in ("decode", "cluster", "validate")]
    for page in [*(stage / "report.html" for stage in stages), outputs / "index.html"]:
        assert "ponder" not in page.read_text(), page
    for table in [path for stage in stages[1:] for path in (stage / "data").glob("*.parquet")]:
        assert not re.search("ponder|think>", pd.read_parquet(table).to_csv()), table.name
    groups = pd.read_parquet(outputs / "cluster/data/groups.parquet")
    assert set(groups.text_id) <= set(texts.text_id) and len(groups)
    panel = pd.read_parquet(outputs / "cluster/data/panel.parquet").set_index("measure")
    counted = {side: len(words(said)) for side, said in SAID.items()}
    assert panel.loc["length_words", ["base", "intervention"]].astype(int).tolist() == list(counted.values())
    claims = pd.read_parquet(outputs / "validate/data/claims.parquet")
    assert claims.confirmed.any() and not claims.loc[claims.confirmed, "flags"].str.contains("likelihoods").any()
    for page in ("decode/report.html", "validate/report.html", "index.html"):
        told = f"{share:.0%} of .{{1,20}}s (answers )?never came"
        assert re.search(told, (outputs / page).read_text()), page


def test_a_model_that_thinks_goes_through_every_stage(base, tmp_path):
    changed = taught(tmp_path / "changed", thought_of, SAID["intervention"], questions=ASKED)
    amplify = ", temperature: 0, amplify: {strengths: [1.0], beginnings: 8}"
    check(ran(tmp_path, base, f"{{kind: checkpoint, model: {changed}, dtype: float32, device: cpu}}", amplify))


def test_a_server_that_thinks_goes_through_every_stage(base, tmp_path):
    """In a field, in tags, and in either of them no further than its thought."""

    def reply(body):
        question, told = body["messages"][-1]["content"], SAID["intervention"]
        if question not in ASKED:  # whether the server draws
            return f"{THOUGHT} {body['seed']}"
        tags, late = ASKED.index(question) % 2, slow(question)
        if tags:
            said = {"content": f"<think>{THOUGHT}" + ("" if late else f"</think>{told}")}
        else:
            said = {"content": None if late else told, "reasoning_content": THOUGHT}
        return {"message": {"role": "assistant", **said}, "finish_reason": "length" if late else "stop"}

    with Server(answer=reply) as server:
        check(ran(tmp_path, base, f"{{kind: endpoint, base_url: {server.url}, model: m}}", ", temperature: 0"))
