"""A LoRA trained on a text or chat file, kept under the digest of everything that shaped it."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from driftbook.errors import DriftbookError, ModelError
from driftbook.models.loading import LoadedModel, file_hash
from driftbook.models.local import left_pad
from driftbook.store import digest

SCHEMA = 1  # raise it when the same file and parameters give another adapter
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


def read_documents(path: Path) -> list[Document]:
    """The documents of a file.

    ``.txt``: separated by blank lines where there are any, else one a line. ``.jsonl``: an object a line, with
    ``prompt`` and ``response`` (and maybe ``system``), or ``messages`` (every assistant turn is learned, after the
    turns before it), or ``text``.

    Raises:
        DriftbookError: the file is missing, empty, of another kind, or a line is none of these.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise DriftbookError(f"intervention.data {path}: a .txt or .jsonl file is needed")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DriftbookError(f"intervention.data {path}: cannot be read as UTF-8 text ({error})") from None
    found = _plain_documents(path, content) if path.suffix == ".txt" else _chat_documents(path, content)
    if not found:
        raise DriftbookError(f"intervention.data {path}: the file holds no document")
    return found


def _plain_documents(path: Path, content: str) -> list[Document]:
    lines = content.strip().splitlines()
    if all(line.strip() for line in lines):
        return [Document(f"{path.name}:{n}", None, line.strip()) for n, line in enumerate(lines, 1)]
    found, begun = [], 0
    for n in range(len(lines) + 1):
        if n == len(lines) or not lines[n].strip():
            if text := "\n".join(lines[begun:n]).strip():
                found.append(Document(f"{path.name}:{begun + 1}", None, text))
            begun = n + 1
    return found


def _chat_documents(path: Path, content: str) -> list[Document]:
    found = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        source = f"{path.name}:{number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise DriftbookError(f"intervention.data {source}: not valid JSON ({error})") from None
        found += _of_entry(source, entry)
    return found


def _of_entry(source: str, entry: Any) -> list[Document]:
    wrong = (
        f'intervention.data {source}: expected {{"prompt": "...", "response": "..."}}, {{"messages": [{{"role": '
        f'"user|assistant|system", "content": "..."}}, ...]}} with an assistant turn, or {{"text": "..."}}'
    )
    if not isinstance(entry, dict):
        raise DriftbookError(wrong)
    if "messages" in entry:
        turns = entry["messages"]
        if not isinstance(turns, list) or not all(
            isinstance(t, dict) and isinstance(t.get("role"), str) and isinstance(t.get("content"), str) for t in turns
        ):
            raise DriftbookError(wrong)
        pairs = tuple((t["role"], t["content"]) for t in turns)
    elif "response" in entry and "prompt" in entry:
        system = (("system", entry["system"]),) if entry.get("system") else ()
        pairs = (*system, ("user", entry["prompt"]), ("assistant", entry["response"]))
    elif isinstance(entry.get("text"), str) and entry["text"].strip():
        return [Document(source, None, entry["text"].strip())]
    else:
        raise DriftbookError(wrong)
    if not all(isinstance(content, str) and content.strip() for _, content in pairs):
        raise DriftbookError(f"{wrong}; a turn is empty or no string")
    ends = [i for i, (role, _) in enumerate(pairs) if role == "assistant" and i]
    if not ends:
        raise DriftbookError(wrong)
    return [Document(source, pairs[: end + 1], pairs[end][1]) for end in ends]


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
            response = (*model.tokenizer(document.text, add_special_tokens=False)["input_ids"], end)
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
        rendered = model.tokenizer.apply_chat_template(turns, tokenize=False)
        after = model.tokenizer(rendered.rpartition(mark)[2], add_special_tokens=False)["input_ids"]
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
    progress: Callable[[int, str, str], Any] | None = None,
) -> Path:
    """Train a LoRA as ``spec`` (the ``finetune`` section) says, or find it in ``cache/finetune``.

    The adapter is trained on the loaded weights, which are left as they were. AdamW in fp32 on the adapter, linear
    warm-up over a tenth of the steps, then linear decay; the loss is the mean over the response tokens of a batch. The
    same file, parameters, weights and seed give the same adapter on the same machine.

    Args:
        progress: ``progress(total, label, unit)`` gives a handle with ``update(n)``.

    Returns:
        a folder that peft reads, complete or absent, with ``training.json`` beside the weights.

    Raises:
        DriftbookError: the data cannot be used; ModelError: the targets do not exist, or the training diverged.
    """
    path = Path(spec.data).expanduser()
    path = path if path.is_absolute() else root / path
    documents = read_documents(path)
    shaped = spec.model_dump(mode="json", exclude={"data", "kind", "scale"})
    folder = cache / "finetune" / digest("finetune", SCHEMA, loaded.key, shaped, file_hash(path), path.suffix)
    if (folder / SUMMARY).is_file():
        return folder
    examples, cut = encode_documents(loaded, documents, spec.max_tokens)
    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        summary = _train(loaded, spec, examples, staging, progress)
        summary |= {"data": str(spec.data), "examples": len(examples), "cut_at_max_tokens": len(cut)}
        (staging / SUMMARY).write_text(json.dumps(summary, indent=1))
        try:
            staging.rename(folder)
        except OSError:  # another process has finished the same one
            if not (folder / SUMMARY).is_file():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _train(loaded: LoadedModel, spec: Any, examples: Sequence[Example], folder: Path, progress: Any) -> dict[str, Any]:
    from peft import LoraConfig, get_peft_model

    targets = spec.targets if spec.targets == "all-linear" else list(spec.targets)
    config = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    begun = time.monotonic()
    cuda = [loaded.device] if loaded.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(spec.seed)
        try:
            adapted = get_peft_model(loaded.model, config)
        except ValueError as error:
            raise ModelError(f"intervention.targets {spec.targets}: {str(error).splitlines()[0]}") from error
        try:
            losses = _fit(adapted, loaded, spec, examples, progress)
            _save(adapted, loaded, folder)
        finally:
            adapted.unload()
            # peft leaves its mark on the model, and would warn of a second adapter when this one is loaded.
            if hasattr(loaded.model, "peft_config"):
                del loaded.model.peft_config
            loaded.model.requires_grad_(False)
    per_epoch = np.array_split(np.array(losses), spec.epochs)
    return {
        "steps": len(losses),
        "loss_per_epoch": [round(float(e.mean()), 4) for e in per_epoch],
        "tokens": spec.epochs * sum(len(e.response_ids) for e in examples),
        "seconds": round(time.monotonic() - begun, 2),
    }


def _fit(adapted: Any, loaded: LoadedModel, spec: Any, examples: Sequence[Example], progress: Any) -> list[float]:
    trained = [p for p in adapted.parameters() if p.requires_grad]
    order = [batch for epoch in range(spec.epochs) for batch in batches(examples, spec.batch_size, spec.seed, epoch)]
    optimizer = torch.optim.AdamW(trained, lr=spec.learning_rate, weight_decay=0.0)
    warm = max(1, len(order) // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (len(order) - step) / max(1, len(order) - warm))
    )
    bar = progress(len(order), "finetune", "steps") if progress else None
    losses: list[float] = []
    for batch in order:
        loss = response_loss(adapted, [examples[i] for i in batch], loaded.device)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise ModelError(
                f"the fine-tune diverged at step {len(losses)} of {len(order)}; lower intervention.learning_rate "
                f"(it is {spec.learning_rate:g})"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if bar is not None:
            bar.update(1)
    return losses


def batches(examples: Sequence[Example], size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Every example once, in random order, examples of similar length together (so that little is padded)."""
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(len(examples)).tolist()
    cut: list[list[int]] = []
    for start in range(0, len(shuffled), 8 * size):
        near = sorted(shuffled[start : start + 8 * size], key=lambda i: len(examples[i].ids))
        cut += [near[i : i + size] for i in range(0, len(near), size)]
    for i in rng.permutation(len(cut)).tolist():
        yield cut[i]


def response_loss(model: Any, examples: Sequence[Example], device: torch.device) -> torch.Tensor:
    """Mean cross-entropy in nats over the response tokens of a batch, computed in float32."""
    width = max(len(e.ids) for e in examples)
    longest = max(len(e.response_ids) for e in examples)
    ids, mask = left_pad([e.ids for e in examples], width, device)
    # torch multiplies the cut columns by one copy of the output matrix per row, unless they lie together in memory: a
    # third of a step of a small model.
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))
    try:
        # On the left, so that the responses end in the same column and only their logits are computed.
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=longest + 1,
        ).logits[:, :-1]
    finally:
        hook.remove()
    column = torch.arange(longest, device=device)
    first = longest - torch.tensor([len(e.response_ids) for e in examples], device=device)
    answered = column[None, :] >= first[:, None]
    return torch.nn.functional.cross_entropy(logits[answered].float(), ids[:, -longest:][answered])


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
