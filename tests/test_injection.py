"""How far texts that speak to the judge move it, measured on judges whose movement is known."""

import numpy as np
import pytest

from driftbench.injection import ATTACKS, measure


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
