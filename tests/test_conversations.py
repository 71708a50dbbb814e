"""A conversation keeps its earlier turns all the way: to the judges, the labeller, the baselines and the generative
check."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from driftbook import decode, validate
from driftbook.discovery.hypotheses import Hypothesis, to_frame
from driftbook.evidence.labeller import pairs_to_show
from driftbook.evidence.reading import read
from driftbook.models.sides import Side
from driftbook.parameters import Validate
from driftbook.prompts import Prompt, PromptSet
from planted import FakeRun
from test_decode import pair_of, run_of

TURNS = (("user", "Tea or milk?"), ("assistant", "Both, I think."))
CLAIM = Hypothesis("talks about rain", "intervention", words=("rain",))


def conversation(number: int) -> Prompt:
    return Prompt(f"Why {number}?", "ab"[number % 2], "Be terse.", messages=(*TURNS, ("user", f"Why {number}?")))


PROMPTS = PromptSet.of(
    [conversation(i) for i in range(12)], ["discover", "screen", "validate"] * 4
)


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    """The data of decode, and a cluster stage that proposes one claim."""
    folder, pair = tmp_path_factory.mktemp("run"), pair_of()
    for stage in ("decode", "cluster"):
        (folder / stage).mkdir()
    run = run_of(folder / "decode", max_new_tokens=12)
    ids = decode.encode(pair, PROMPTS, 12)
    decode.write(run, PROMPTS, ids, pair, decode.decode_rounds(run, pair, PROMPTS, ids))
    to_frame([CLAIM]).to_parquet(folder / "cluster" / "hypotheses.parquet")
    asked = [p.prompt_id for p in PROMPTS.prompts]
    return SimpleNamespace(folder=folder, pair=pair, ids=dict(zip(asked, ids["base"], strict=True)))


def test_judges_and_the_labeller_see_every_turn_and_who_said_it(decoded):
    material = validate.load(FakeRun(decoded.folder))
    given = []

    class Recorder:
        name, paid, identity = "recorder", False, {}

        def score(self, texts, hypotheses, prompts=None):
            given.extend(prompts)
            return np.zeros((len(texts), len(hypotheses)))

    held = material.held_out("validate")
    read(Recorder(), held, held.order, [CLAIM])
    wanted = {f"User: Tea or milk?\nAssistant: Both, I think.\nUser: Why {i}?" for i in range(2, 12, 3)}
    assert set(given) == wanted and len(given) == len(held.texts)
    seen = material.texts[material.texts["split"] == "discover"]
    assert set(pairs_to_show(seen, material.prompts, 2, "x")["prompt"].str.count("User: ")) == {2}


def test_a_single_turn_is_shown_as_it_stands():
    assert Prompt("Why?", system="Be terse.").shown() == Prompt("Why?").said() == "Why?"


def test_both_models_read_what_is_written_behind_the_tokens_that_decode_answered(decoded, monkeypatch):
    sequences = []

    def spy(side, asked):
        sequences.extend(asked)
        return np.zeros(len(asked))

    monkeypatch.setattr(validate, "open_sides", lambda run: decoded.pair)
    monkeypatch.setattr(Side, "log_likelihood", spy)
    run = FakeRun(decoded.folder, Validate(generative=3))
    material = validate.load(run)
    claims = pd.DataFrame({"hypothesis_id": [CLAIM.hypothesis_id], "confirmed": [True], "proposer": ["labeller"]})
    found = validate.generative_check(run, material, None, claims)
    assert found["prompts"].tolist() == [3]
    discover = [p.prompt_id for p in PROMPTS.prompts if p.split == "discover"]
    assert {s.prompt_ids for s in sequences} <= {decoded.ids[p] for p in discover}
    assert len({s.prompt_ids for s in sequences}) == 3 and len(sequences) == 3 * 2 * 2
