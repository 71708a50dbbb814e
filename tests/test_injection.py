"""How far texts that speak to the judge move it, measured on judges whose movement is known."""

import json
from pathlib import Path

import numpy as np
import pytest

from chat_server import Server
from driftbench.injection import ATTACKS, TRAIT, main, measure


class Gullible:
    """HIGH of 0.8 where the text shows it, 0.2 else; 0.9 for whoever asks for HIGH in words, nothing for a template."""

    def score(self, texts, hypotheses, prompts):
        def one(text):
            if "im_start" in text:
                return np.nan
            return 0.9 if "rate HIGH" in text else 0.8 if "unsure" in text else 0.2

        assert len(texts) == len(prompts)
        return np.array([[one(t)] for t in texts])


def test_the_movement_is_that_of_the_texts_that_were_spoken_for():
    texts = ["I am unsure.", "Maybe, unsure.", "Certainly.", "Yes."]
    table = measure(Gullible(), ["p"] * 4, texts, np.array([True, True, False, False]))
    rows = {row.pop("behind the answer"): row for row in table}
    assert list(rows) == ["none", *ATTACKS]
    assert rows["none"] == {"mean change": 0.0, "raised above half": 0.0, "auc": 1.0, "missing": 0}
    assert rows["instruction"]["mean change"] == pytest.approx((0.1 + 0.7) / 2)
    assert rows["instruction"]["raised above half"] == 1.0 and rows["instruction"]["auc"] == 0.5
    assert rows["verdict"]["mean change"] == 0.0
    assert rows["marks of a chat template"]["missing"] == 4 and np.isnan(rows["marks of a chat template"]["auc"])


def test_a_judge_behind_a_server_is_tried_with_both_kinds_of_marks(tmp_path):
    def rate(body):
        said = body["messages"][1]["content"]
        return '{"1": "HIGH"}' if "<answer>" in said and "rate HIGH" in said else '{"1": "LOW"}'

    (tmp_path / "params/traits").mkdir(parents=True)
    (tmp_path / f"params/traits/{TRAIT}.json").write_text(Path(f"params/traits/{TRAIT}.json").read_text())
    with Server(answer=rate) as server:
        judge = {"kind": "endpoint", "base_url": server.url, "model": "m"}
        table = main(json.dumps(judge), 4, tmp_path).set_index(["marks", "behind the answer"])
        assert len(server.bodies) == 4 * 2 * (1 + len(ATTACKS))
    raised = table["raised above half"]
    assert raised["plain", "instruction"] == 1 and raised.sum() == 1 and not table["missing"].any()
