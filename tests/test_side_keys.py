"""What texts are kept under: numbers that were computed once and must stay, so that finished texts are found again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from driftbook.discovery.decoding import shard_key
from driftbook.interventions import Ablate, Endpoint, NoIntervention, Steer, SystemPrompt, Texts
from driftbook.models.answers import Request
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Side
from driftbook.sections import ModelSpec, Opening
from driftbook.store import digest
from models import loaded
from test_vectors import some_vectors

BASE = replace(loaded(), key="0123456789abcdef")
TABLE = "side,prompt,text\nbase,Why?,No.\nintervention,Why?,Yes.\n"


def opened(intervention, tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    return intervention.open(BASE, Opening(ModelSpec(), tmp_path, tmp_path, some_vectors()))


@pytest.mark.parametrize(
    ("intervention", "base", "changed"),
    [
        (NoIntervention(), BASE.key, BASE.key),
        (SystemPrompt(system="Be terse."), BASE.key, "0fced6c7be4670ee"),
        (Texts(path="t.csv"), "ca042024b8653934", "ca042024b8653934"),
        (Endpoint(base_url="http://127.0.0.1:1/v1", model="m"), BASE.key, "35f4dda53b69904a"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_the_keys_of_sides_are_those_of_finished_texts(tmp_path, intervention, base, changed):
    pair = opened(intervention, tmp_path)
    assert (pair.base.key, pair.intervention.key) == (base, changed)


@pytest.mark.parametrize(
    ("intervention", "more"),
    [
        (
            Steer(trait="warm", coefficient=0.5),
            {"kind": "steer", "trait": "warm", "coefficient": 0.5, "layer": "auto", "positions": "all"},
        ),
        (Ablate(trait="warm"), {"kind": "ablate", "trait": "warm", "layer": "all"}),
    ],
    ids=["steer", "ablate"],
)
def test_the_key_of_an_edit_is_made_of_its_parameters_and_its_vector(tmp_path, intervention, more):
    side = opened(intervention, tmp_path).intervention
    assert side.key == digest(BASE.key, more, side.notes)[:16]
    named = {"trait", "layers", "site", "method", "vector"}
    steered = {"coefficient", "mean_activation_norm", "positions"}
    assert set(side.notes) == named | (steered if intervention.kind == "steer" else set())


def test_the_key_of_a_shard_is_that_of_finished_texts():
    side = Side("base", BASE, BASE.key)
    requests = [Request((1, 2, 3), 7), Request((4, 5), 2**60)]
    assert shard_key(side, SamplingParams(8, 0.7, 0.9), requests) == "f7c39f4147398953dc21322a9f89abe4"
