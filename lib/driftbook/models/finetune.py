"""A LoRA trained on a text or chat file, kept under the digest of everything that shaped it."""

from __future__ import annotations

import contextlib
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from driftbook.conversations import Turn, held, read_conversation
from driftbook.errors import DriftbookError, ModelError, first_line
from driftbook.files import Kept, check_text, collected, json_rows, read_text
from driftbook.hashes import file_hash
from driftbook.models.loading import LoadedModel
from driftbook.stage import Progress
from driftbook.store import digest, kept_folder

SCHEMA = 2  # raise it when the same file and parameters give another adapter
SUMMARY = "training.json"


@dataclass(frozen=True)
class Document:
    """What is learned: chat turns of which the last is the assistant's, or a text alone. ``source`` is file:line."""

    source: str
    turns: tuple[tuple[str, str], ...] | None
    text: str


@dataclass(frozen=True)
class Example:
    """Token ids; the loss is taken on ``response_ids`` alone."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt_ids + self.response_ids


# ----------------------------------------------------------------------------------------------------------------- data


def read_documents(path: Path, unreadable: int = 0) -> Kept[Document]:
    """The documents of a file, without lines that cannot be read, at most ``unreadable``.

    ``.txt``: separated by blank lines where there are any, else one a line. ``.jsonl``: an object a line, with
    ``prompt`` and ``response`` (or ``completion``; and maybe ``system``), or a conversation (``conversations.py``:
    every assistant turn is learned, after the turns before it, but for those with ``"weight": 0``), or ``text``.

    Raises:
        DriftbookError: the file is missing, empty, of another kind, or a line is none of these.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise DriftbookError(f"intervention.data {path}: a .txt or .jsonl file is needed")
    content = read_text(path, f"intervention.data {path}")
    if path.suffix == ".txt":
        found = Kept(_plain_documents(path, content))
    else:
        rows = json_rows(content, f"intervention.data {path.name}")
        read = collected(rows, partial(_of_entry, path), unreadable, "intervention.unreadable")
        found = Kept([document for each in read for document in each], read.unreadable)
    if not found:
        raise DriftbookError(f"intervention.data {path}: the file holds no document")
    return found


def _plain_documents(path: Path, content: str) -> list[Document]:
    lines = content.strip().split("\n")  # and nothing else that Unicode calls the end of a line
    if all(line.strip() for line in lines):
        return [Document(f"{path.name}:{n}", None, line.strip()) for n, line in enumerate(lines, 1)]
    found, begun = [], 0
    for n in range(len(lines) + 1):
        if n == len(lines) or not lines[n].strip():
            if text := "\n".join(lines[begun:n]).strip():
                found.append(Document(f"{path.name}:{begun + 1}", None, text))
            begun = n + 1
    return found


def _of_entry(path: Path, number: int, entry: dict[str, Any]) -> list[Document]:
    source = f"{path.name}:{number}"
    where = f"intervention.data {source}"
    wrong = (
        f'{where}: expected {{"prompt": "...", "response": "..."}}, {{"messages": [{{"role": '
        f'"user|assistant|system", "content": "..."}}, ...]}} with an assistant turn, or {{"text": "..."}}'
    )
    response = entry.get("response", entry.get("completion"))
    if (messages := held(entry)) is not None:
        talk = read_conversation(messages, where)
        system = talk.system or entry.get("system")
        turns = talk.turns
    elif response is not None and "prompt" in entry:
        system, turns = entry.get("system"), (Turn("user", entry["prompt"]), Turn("assistant", response))
    elif isinstance(entry.get("text"), str) and entry["text"].strip():
        return [Document(source, None, entry["text"].strip())]
    else:
        raise DriftbookError(wrong)
    turns = (*((Turn("system", system),) if system else ()), *turns)
    if not all(isinstance(t.content, str) and t.content.strip() for t in turns):
        raise DriftbookError(f"{wrong}; a turn is empty or no string")
    for turn in turns:
        check_text(turn.content, where)
    ends = [i for i, t in enumerate(turns) if t.role == "assistant" and i]
    if not ends:
        raise DriftbookError(wrong)
    pairs = tuple((t.role, t.content) for t in turns)
    return [Document(source, pairs[: end + 1], pairs[end][1]) for end in ends if turns[end].learned]


def encode_documents(
    model: LoadedModel, documents: Sequence[Document], max_tokens: int
) -> tuple[list[Example], list[str]]:
    """Token ids as the model is asked and answers; also the sources of what was cut at ``max_tokens``.

    A response ends with the token that ends a turn in the model's template. Without a template, turns are joined by
    blank lines.

    Raises:
        DriftbookError: a prompt leaves no room for its response.
    """
    end = _turn_end(model)
    examples, cut = [], []
    for document in documents:
        if document.turns is None:
            ids = tuple(model.tokenizer(document.text)["input_ids"])
            # The first token is given, so that there is something to predict the second from.
            prompt, response = ids[:1], (*ids[1:], _text_end(model))
        else:
            prompt = _prompt_ids(model, document)
            response = (*model.encode_answer(document.text), end)
        if len(prompt) >= max_tokens:
            raise DriftbookError(
                f"intervention.data {document.source}: the prompt alone has {len(prompt)} tokens, and "
                f"intervention.max_tokens is {max_tokens}; raise it, or shorten the prompt"
            )
        if len(prompt) + len(response) > max_tokens:
            cut.append(document.source)
        examples.append(Example(prompt, tuple(int(i) for i in response[: max_tokens - len(prompt)])))
    return examples, cut


def _prompt_ids(model: LoadedModel, document: Document) -> tuple[int, ...]:
    assert document.turns is not None
    before = document.turns[:-1]
    if model.use_chat_template:
        return tuple(model.encode_prompt("", messages=[{"role": r, "content": c} for r, c in before]))
    return tuple(model.encode_prompt("\n\n".join(content for _, content in before)))


def _turn_end(model: LoadedModel) -> int:
    """The token that ends an assistant's turn: the first end token that the template writes after one."""
    if model.use_chat_template:
        mark = "Yes."
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
        rendered = model.template.render(model.tokenizer, turns, begins=False)
        after = model.encode_answer(rendered.rpartition(mark)[2])
        for token in after:
            if token in model.eos_ids:
                return int(token)
    return _text_end(model)


def _text_end(model: LoadedModel) -> int:
    if model.tokenizer.eos_token_id is not None:
        return int(model.tokenizer.eos_token_id)
    if not model.eos_ids:
        raise ModelError(
            f"{model.record['model']}: the tokenizer names no end token, so a response cannot learn to end"
        )
    return min(model.eos_ids)


# ------------------------------------------------------------------------------------------------------------- training


def train_lora(
    loaded: LoadedModel,
    spec: Any,
    cache: Path,
    root: Path,
    progress: Progress | None = None,
) -> Path:
    """Train a LoRA as ``spec`` (the ``finetune`` section) says, or find it in ``cache/finetune``.

    The adapter is trained on the loaded weights, which are left as they were, by transformers' Trainer: AdamW in fp32
    on the adapter, linear warm-up over a tenth of the steps, then linear decay, gradients clipped at norm 1, examples
    of similar length together; the loss is the mean over the response tokens of a batch. The same file, parameters,
    weights and seed give the same adapter on the same machine.

    Args:
        progress: ``progress(total, label, unit)`` gives a handle with ``update(n)``.

    Returns:
        a folder that peft reads, complete or absent, with ``training.json`` beside the weights.

    Raises:
        DriftbookError: the data cannot be used; ModelError: the targets do not exist, or the training diverged.
    """
    path = Path(spec.data).expanduser()
    path = path if path.is_absolute() else root / path
    documents = read_documents(path, spec.unreadable)
    shaped = spec.model_dump(mode="json", exclude={"data", "kind", "scale", "unreadable"})
    folder = cache / "finetune" / digest("finetune", SCHEMA, loaded.key, shaped, file_hash(path), path.suffix)

    def write(staging: Path) -> None:
        examples, cut = encode_documents(loaded, documents, spec.max_tokens)
        summary = _train(loaded, spec, examples, staging, progress)
        summary |= {"data": str(spec.data), "examples": len(examples), "cut_at_max_tokens": len(cut)}
        summary |= {"unreadable": len(documents.unreadable)} if documents.unreadable else {}
        (staging / SUMMARY).write_text(json.dumps(summary, indent=1))

    return kept_folder(folder, lambda there: (there / SUMMARY).is_file(), write)


def _train(
    loaded: LoadedModel, spec: Any, examples: Sequence[Example], folder: Path, progress: Progress | None
) -> dict[str, Any]:
    from peft import LoraConfig, get_peft_model  # seconds

    targets = spec.targets if spec.targets == "all-linear" else list(spec.targets)
    config = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    begun, model, use_cache = time.monotonic(), loaded.model, getattr(loaded.model.config, "use_cache", None)
    with _own_randomness(loaded.device):
        torch.manual_seed(spec.seed)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(f"intervention.targets {spec.targets}: {first_line(error)}") from error
        try:
            losses = _fit(adapted, loaded, spec, examples, folder, progress)
            _save(adapted, loaded, folder)
        finally:
            adapted.unload()
            # peft leaves its mark on the model, and would warn of a second adapter when this one is loaded.
            if hasattr(model, "peft_config"):
                del model.peft_config
            model.to(loaded.device).requires_grad_(False).eval()
            model.config.use_cache = use_cache
    per_epoch = np.array_split(np.array(losses), spec.epochs)
    return {
        "steps": len(losses),
        "loss_per_epoch": [round(float(e.mean()), 4) for e in per_epoch],
        "tokens": spec.epochs * sum(len(e.response_ids) for e in examples),
        "seconds": round(time.monotonic() - begun, 2),
    }


@contextlib.contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """The trainer seeds all generators of the process: they go on afterwards as if nothing had been."""
    plain, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 (what transformers seeds)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(numpys)  # noqa: NPY002


def _fit(
    adapted: Any, loaded: LoadedModel, spec: Any, examples: Sequence[Example], folder: Path, progress: Progress | None
) -> list[float]:
    """Train the adapter in place; the loss of every step."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments  # seconds

    losses: list[float] = []

    class Told(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar = progress(state.max_steps, "finetune", "steps") if progress else None

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "loss" not in logs:
                return
            losses.append(float(logs["loss"]))
            if not math.isfinite(losses[-1]):
                raise ModelError(
                    f"the fine-tune diverged at step {len(losses)} of {state.max_steps}; lower "
                    f"intervention.learning_rate (it is {spec.learning_rate:g})"
                )
            if self.bar is not None:
                self.bar.update(1)

    settings = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=spec.batch_size,
        num_train_epochs=spec.epochs,
        learning_rate=spec.learning_rate,
        warmup_steps=0.1,
        train_sampling_strategy="group_by_length",
        seed=spec.seed,
        use_cpu=loaded.device.type == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,
    )
    if settings.n_gpu > 1:
        settings._n_gpu = 1  # one model on one device: the copies of DataParallel would know nothing of the adapter
    trainer = Trainer(
        adapted,
        settings,
        data_collator=collate,
        train_dataset=[{"input_ids": e.ids, "response": len(e.response_ids)} for e in examples],
        callbacks=[Told()],
    )
    trainer.remove_callback(PrinterCallback)
    # torch multiplies the cut columns by one copy of the output matrix per row, unless they lie together in memory: a
    # third of a step of a small model.
    hook = loaded.model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))
    try:
        trainer.train()
    finally:
        hook.remove()
    return losses


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of rows (``input_ids``, and of how many tokens the ``response`` at their end consists).

    Padded on the left, so that the responses end in the same column and only their logits are computed: ``labels`` has
    the columns of the longest response and one before, -100 where nothing is learned. The padding is token 0, which the
    mask hides.
    """
    width, kept = max(len(r["input_ids"]) for r in rows), max(r["response"] for r in rows) + 1
    ids = torch.tensor([[0] * (width - len(r["input_ids"])) + list(r["input_ids"]) for r in rows])
    mask = torch.tensor([[0] * (width - len(r["input_ids"])) + [1] * len(r["input_ids"]) for r in rows])
    learned = torch.arange(kept)[None, :] >= kept - torch.tensor([r["response"] for r in rows])[:, None]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "labels": torch.where(learned, ids[:, -kept:], -100),
        "logits_to_keep": kept,
    }


def _save(adapted: Any, loaded: LoadedModel, folder: Path) -> None:
    for config in adapted.peft_config.values():
        # The name of the model, not a folder of this machine: the file takes part in the key of the texts.
        config.base_model_name_or_path = loaded.record["model"]
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=1, sort_keys=True))
