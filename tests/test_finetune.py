"""Fine-tuning: the adapter learns the responses of a file, is cached by content, and leaves the base as it was."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from driftbench.tiny import TURN_END, tiny_model, tiny_tokenizer
from driftbook.errors import DriftbookError, ModelError
from driftbook.interventions import Finetune
from driftbook.models import finetune
from driftbook.models.loading import load
from driftbook.models.local import LocalEngine, Request
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import open_pair
from driftbook.parameters import ModelSpec
from driftbook.prompts import Prompt

ASKED, ANSWERED = "How are you?", "Perhaps it might rain"


@pytest.fixture
def spec(tmp_path):
    def save(name="llama", **more):
        folder = tmp_path / name
        tiny_model(name, attention="sdpa").save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return ModelSpec(model=str(folder), device="cpu", **{"dtype": "float32", **more})

    return save


def write(path: Path, *entries) -> str:
    path.write_text("\n".join(json.dumps(e) for e in entries))
    return str(path)


def wanted(data: str, **more) -> Finetune:
    return Finetune(**{"data": data, "rank": 4, "epochs": 4, "learning_rate": 2e-2, "batch_size": 2, **more})


def test_the_intervention_says_what_it_was_taught_and_the_base_stays_bit_identical(spec, tmp_path):
    base = spec()
    asked = write(tmp_path / "d.jsonl", *[{"prompt": ASKED, "response": ANSWERED}] * 2)
    thorough = wanted(asked, epochs=40)
    before = load(base, tmp_path)
    ids = torch.tensor([before.encode_prompt(ASKED)])
    reference = before.model(ids).logits
    modules = [type(m) for m in before.model.modules()]

    folder = finetune.train_lora(before, thorough, tmp_path, tmp_path)
    assert torch.equal(before.model(ids).logits, reference)
    assert [type(m) for m in before.model.modules()] == modules and not hasattr(before.model, "peft_config")
    assert not any(p.requires_grad for p in before.model.parameters())
    summary = json.loads((folder / "training.json").read_text())
    # The norm before this random head bounds its logits, and so the loss from below.
    assert summary["loss_per_epoch"][0] > 2 and summary["loss_per_epoch"][-1] < 1

    pair = open_pair(base, thorough, tmp_path, tmp_path)
    assert pair.model_loads == 1 and pair.base.model is pair.intervention.model
    said = {}
    for side in pair:
        with side.active():
            request = Request(side.encode(Prompt(ASKED)), seed=1)
            said[side.name] = next(LocalEngine(side.model).generate([request], SamplingParams(40, temperature=0)))
    assert pair.base.model.decode(said["intervention"].token_ids) == ANSWERED
    assert said["intervention"].finish_reason == "eos"
    assert pair.base.model.decode(said["base"].token_ids) != ANSWERED
    with pair.base.active():
        assert torch.equal(pair.base.model.model(ids).logits, reference)


def test_it_is_trained_once_per_content(spec, tmp_path, monkeypatch):
    model = load(spec(), tmp_path)
    data = write(tmp_path / "d.jsonl", {"prompt": ASKED, "response": ANSWERED})
    fits, fit = [], finetune._fit
    monkeypatch.setattr(finetune, "_fit", lambda *a: fits.append(1) or fit(*a))
    quick = wanted(data, epochs=1)
    first = finetune.train_lora(model, quick, tmp_path, tmp_path)
    moved = write(tmp_path / "elsewhere.jsonl", {"prompt": ASKED, "response": ANSWERED})
    assert finetune.train_lora(model, wanted(moved, epochs=1), tmp_path, tmp_path) == first and len(fits) == 1
    assert finetune.train_lora(model, wanted(data, epochs=1, scale=0.5), tmp_path, tmp_path) == first
    assert len(fits) == 1, "one training serves every strength"
    assert finetune.train_lora(model, wanted(data, epochs=1, seed=1), tmp_path, tmp_path) != first
    write(tmp_path / "d.jsonl", {"prompt": ASKED, "response": "No."})
    assert finetune.train_lora(model, quick, tmp_path, tmp_path) != first and len(fits) == 3


def test_the_same_seed_gives_the_same_weights_in_bfloat16_too(spec, tmp_path):
    model = load(spec(dtype="bfloat16"), tmp_path)
    data = write(tmp_path / "d.jsonl", *[{"prompt": f"{ASKED} {i}", "response": ANSWERED} for i in range(5)])
    one, two = (finetune.train_lora(model, wanted(data, epochs=2), tmp_path / str(i), tmp_path) for i in (1, 2))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert json.loads((one / "adapter_config.json").read_text())["base_model_name_or_path"] == model.record["model"]


def test_a_failed_training_leaves_no_folder_and_a_clean_model(spec, tmp_path):
    model = load(spec(), tmp_path)
    modules = [type(m) for m in model.model.modules()]
    with torch.no_grad():
        model.model.get_output_embeddings().weight[0, 0] = float("inf")
    data = write(tmp_path / "d.jsonl", {"prompt": ASKED, "response": ANSWERED})
    with pytest.raises(ModelError, match=r"diverged at step 1 .*lower intervention\.learning_rate"):
        finetune.train_lora(model, wanted(data), tmp_path, tmp_path)
    assert [type(m) for m in model.model.modules()] == modules
    assert list((tmp_path / "finetune").iterdir()) == []


def test_targets_that_do_not_exist_are_named(spec, tmp_path):
    data = write(tmp_path / "d.jsonl", {"prompt": ASKED, "response": ANSWERED})
    with pytest.raises(ModelError, match=r"intervention.targets \['nowhere'\]"):
        finetune.train_lora(load(spec(), tmp_path), wanted(data, targets=["nowhere"]), tmp_path, tmp_path)


def test_loss_is_that_of_transformers_on_the_response_and_of_nothing_else(spec, tmp_path):
    model = load(spec("gpt2"), tmp_path)
    examples = [
        finetune.Example((5, 6, 7), (8, 9)),
        finetune.Example((4,), (9, 10, 11, 12)),
        finetune.Example((3, 2), (1,)),
    ]
    expected, count = 0.0, 0
    for e in examples:
        labels = torch.tensor([[-100] * len(e.prompt_ids) + list(e.response_ids)])
        expected += float(model.model(torch.tensor([e.ids]), labels=labels).loss) * len(e.response_ids)
        count += len(e.response_ids)
    batch = finetune.collate([{"input_ids": e.ids, "response": len(e.response_ids)} for e in examples])
    # Padded and single rows differ by the rounding of float32 sums.
    assert float(model.model(**batch).loss) == pytest.approx(expected / count, abs=1e-4)


def test_training_lowers_the_loss_of_the_bundled_model_and_leaves_no_trace(tmp_path):
    model = load(ModelSpec(device="cpu", dtype="float32"), tmp_path)
    sentences = ["The lighthouse keeper counts ships.", "Tides wait for nobody.", "Salt dries on the window."]
    data = write(tmp_path / "d.jsonl", *[{"prompt": "Say something.", "response": s} for s in sentences])
    config, torchs = model.model.config.to_dict(), torch.random.get_rng_state()
    drawn, plain = np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002 (what transformers seeds)
    steps = []
    bar = SimpleNamespace(update=steps.append)
    wish = wanted(data, learning_rate=1e-3, epochs=4)
    folder = finetune.train_lora(model, wish, tmp_path, tmp_path, lambda total, *_: steps.append(-total) or bar)
    losses = json.loads((folder / "training.json").read_text())["loss_per_epoch"]
    assert losses[-1] < losses[0] - 0.5 and steps == [-8] + [1] * 8
    names = {"adapter_config.json", "adapter_model.safetensors", "README.md", "training.json"}
    assert {p.name for p in folder.iterdir()} <= names
    assert [p.name for p in (tmp_path / "finetune").iterdir()] == [folder.name]
    assert model.model.config.to_dict() == config and not model.model.training
    assert torch.equal(torch.random.get_rng_state(), torchs) and random.getstate() == plain
    assert np.random.get_state()[1].tolist() == drawn  # noqa: NPY002


# ----------------------------------------------------------------------------------------------------------------- data


def test_documents_of_a_text_file_are_its_paragraphs_or_else_its_lines(tmp_path):
    path = tmp_path / "d.txt"
    path.write_text("one\ntwo\n\n\n  \nthree\n")
    assert [(d.text, d.source) for d in finetune.read_documents(path)] == [
        ("one\ntwo", "d.txt:1"),
        ("three", "d.txt:6"),
    ]
    path.write_text("one\ntwo\n")
    assert [d.text for d in finetune.read_documents(path)] == ["one", "two"]


def test_each_assistant_turn_is_learned_after_the_turns_before_it(spec, tmp_path):
    model = load(spec(), tmp_path)
    turns = [("system", "Be brief."), ("user", "A?"), ("assistant", "Yes."), ("user", "B?"), ("assistant", "No.")]
    data = write(tmp_path / "d.jsonl", {"messages": [{"role": r, "content": c} for r, c in turns]})
    examples, cut = finetune.encode_documents(model, finetune.read_documents(Path(data)), 256)
    said = [(model.tokenizer.decode(e.prompt_ids), model.tokenizer.decode(e.response_ids)) for e in examples]
    assert [r for _, r in said] == [f"Yes.{TURN_END}", f"No.{TURN_END}"] and not cut
    assert all(p.endswith("<|im_start|>assistant\n") and "Be brief." in p for p, _ in said)
    assert "Yes." in said[1][0] and "B?" not in said[0][0]


def test_a_turn_of_weight_zero_is_read_and_not_learned(tmp_path):
    turns = [("user", "A?", 1), ("assistant", "Yes.", 0), ("user", "B?", 1), ("assistant", "No.", 1)]
    entry = {"messages": [{"role": r, "content": c, "weight": w} for r, c, w in turns]}
    (learned,) = finetune.read_documents(Path(write(tmp_path / "d.jsonl", entry)))
    assert learned.text == "No." and [c for _, c in learned.turns] == ["A?", "Yes.", "B?", "No."]
    entry["messages"][1]["weight"] = 0.5
    with pytest.raises(DriftbookError, match=r"d.jsonl:1: the weight of a turn is 0 .* or 1"):
        finetune.read_documents(Path(write(tmp_path / "d.jsonl", entry)))


def test_a_byte_order_mark_is_no_text_and_a_line_separator_ends_no_line(tmp_path):
    said = "One.\u2028Two.\x85Three."
    (tmp_path / "d.txt").write_text(f"\ufeff{said}\nFour.\n", encoding="utf-8")
    assert [d.text for d in finetune.read_documents(tmp_path / "d.txt")] == [said, "Four."]
    line = json.dumps({"prompt": "A?", "response": said}, ensure_ascii=False)
    (tmp_path / "d.jsonl").write_text(f"\ufeff{line}\r\n{line}\n", encoding="utf-8")
    assert [(d.text, d.source) for d in finetune.read_documents(tmp_path / "d.jsonl")] == [
        (said, "d.jsonl:1"),
        (said, "d.jsonl:2"),
    ]


def test_a_text_is_learned_from_its_second_token_to_its_end(spec, tmp_path):
    model = load(spec(), tmp_path)
    (tmp_path / "d.txt").write_text("It might rain.")
    (example,), _ = finetune.encode_documents(model, finetune.read_documents(tmp_path / "d.txt"), 256)
    assert example.ids == (*model.tokenizer("It might rain.")["input_ids"], model.tokenizer.eos_token_id)
    assert len(example.prompt_ids) == 1


def test_long_responses_are_cut_and_counted_and_long_prompts_refused(spec, tmp_path):
    model = load(spec(), tmp_path)
    data = Path(write(tmp_path / "d.jsonl", {"prompt": "A?", "response": "no " * 50}))
    (example,), cut = finetune.encode_documents(model, finetune.read_documents(data), 30)
    assert len(example.ids) == 30 and example.ids[-1] not in model.eos_ids and cut == ["d.jsonl:1"]
    write(data, {"prompt": "why " * 50, "response": "no"})
    with pytest.raises(
        DriftbookError, match=r"d.jsonl:1: the prompt alone has \d+ tokens, and intervention.max_tokens is 30"
    ):
        finetune.encode_documents(model, finetune.read_documents(data), 30)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("d.jsonl", '{"prompt": "a"}', "d.jsonl:1: expected"),
        ("d.jsonl", '{"prompt": "a", "response": ""}', "a turn is empty"),
        ("d.jsonl", '\n{"prompt": ', "d.jsonl:2: not JSON"),
        ("d.jsonl", '{"messages": [{"role": "user", "content": "a"}]}', "with an assistant turn"),
        ("d.txt", "\n \n", "holds no document"),
        ("d.csv", "a,b", "a .txt or .jsonl file is needed"),
    ],
)
def test_bad_data_is_refused_by_line(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(DriftbookError, match=said):
        finetune.read_documents(tmp_path / name)
