"""Changes with a known truth: what is planted into a model, and what recognises it in a text.

``params/bench/plants/plants.yml`` describes them. A *learned* plant is a LoRA trained on the model's own answers,
edited so that they show one behaviour; the adapter is merged into the weights at several scales, which makes a change
of several strengths from one training. A *given* plant is one of the other interventions. The scorer of a plant knows
the truth and takes no part in any pipeline.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from driftbook import parameters, traits
from driftbook.errors import ParameterError
from driftbook.hashes import file_hash
from driftbook.interventions import Finetune
from driftbook.models import traitfiles
from driftbook.models.finetune import train_lora
from driftbook.models.loading import LoadedModel, load
from driftbook.models.sides import Pair, Side, open_pair
from driftbook.models.vectors import VectorSet
from driftbook.prompts import Prompt, SideName
from driftbook.store import digest

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Plant:
    """One change at one strength.

    ``scorer`` says whether an answer shows the planted behaviour; None where nothing in particular is expected.
    ``direction`` is the side that shows it more: the base where the change takes a habit away. ``targets`` says of a
    prompt whether the change was aimed at it. ``trait`` is the shipped trait that should move, ``layers`` the only
    blocks that were changed, where the plant knows.
    """

    name: str
    says: str
    strength: float
    kind: str
    scorer: Callable[[str], bool] | None
    targets: Callable[[Prompt], bool]
    trait: str | None = None
    layers: tuple[int, ...] | None = None
    spec: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name} {self.strength:g}"

    @property
    def conditional(self) -> bool:
        """Whether the change was aimed at some prompts alone."""
        return bool({"families", "prompt", "turns"} & set(self.spec.get("only", {})))

    @property
    def direction(self) -> SideName:
        return "base" if self.spec.get("less") else "intervention"


def read(path: Path) -> tuple[dict[str, Any], list[Plant]]:
    """The settings of a plants file, and one Plant for each of its changes and strengths.

    Raises:
        ParameterError: a key is missing or unknown, or an expression does not compile; names file, plant and key.
    """
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    plants = []
    for kind in ("learned", "given"):
        for spec in settings[kind]:
            where = f"{path}: {spec.get('name', kind)}"
            known = {"name", "says", "only", "edit", "scorer", "less", "strengths", "intervention", "trait", "layers"}
            if unknown := set(spec) - known:
                raise ParameterError(
                    f"{where}: unknown key {sorted(unknown)[0]!r}; there are {', '.join(sorted(known))}"
                )
            needed = "edit" if kind == "learned" else "intervention"
            if missing := {"name", "says", needed} - set(spec):
                raise ParameterError(f"{where}: {sorted(missing)[0]} is missing")
            strengths = spec.get("strengths", settings["strengths"] if kind == "learned" else [1.0])
            plants += [
                Plant(
                    name=spec["name"],
                    says=spec["says"],
                    strength=float(strength),
                    kind="learned" if kind == "learned" else spec["intervention"]["kind"],
                    scorer=_scorer(spec["scorer"], where) if "scorer" in spec else None,
                    targets=_targets(spec.get("only", {}), where),
                    trait=spec.get("trait"),
                    layers=tuple(spec["layers"]) if "layers" in spec else None,
                    spec=spec,
                )
                for strength in strengths
            ]
    return settings, plants


def _scorer(spec: dict[str, Any], where: str) -> Callable[[str], bool]:
    if "pattern" in spec:
        pattern = _compiled(spec["pattern"], f"{where}: scorer.pattern")
        return lambda text: pattern.search(text) is not None
    if "most_words" in spec:
        return lambda text: len(text.split()) <= spec["most_words"]
    raise ParameterError(f"{where}: scorer needs pattern or most_words")


def _targets(only: dict[str, Any], where: str) -> Callable[[Prompt], bool]:
    families, turns = only.get("families"), only.get("turns")
    pattern = _compiled(only["prompt"], f"{where}: only.prompt") if "prompt" in only else None
    return lambda prompt: (
        (families is None or prompt.family in families)
        and (pattern is None or pattern.search(prompt.text) is not None)
        and (turns is None or sum(role == "user" for role, _ in prompt.messages or (("user", ""),)) == turns)
    )


def _compiled(pattern: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error as reason:
        raise ParameterError(f"{where}: {reason}") from None


# ---------------------------------------------------------------------------------------------------------- to train on


def read_answers(path: Path) -> tuple[list[Prompt], list[str]]:
    """The prompts and answers that learned plants are made from: JSON lines with family, prompt and response."""
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Prompt(e["prompt"], e["family"]) for e in entries], [e["response"] for e in entries]


def edited(answer: str, edit: dict[str, Any], rng: np.random.Generator) -> str:
    """An answer that shows the planted behaviour."""
    sentences = _SENTENCE_END.split(answer)
    if "insert" in edit:
        new = edit["sentences"][rng.integers(len(edit["sentences"]))]
        at = {"start": 0, "after_first": 1, "end": len(sentences)}[edit["insert"]]
        return " ".join([*sentences[:at], new, *sentences[at:]])
    if "replace" in edit:
        return edit["replace"][rng.integers(len(edit["replace"]))]
    if "first_words" in edit:
        words = answer.split()[: int(edit["first_words"])]
        return " ".join(words).rstrip(" ,;:") + ("" if words[-1][-1] in ".!?" else ".")
    if "swap" in edit:
        longest_first = "|".join(map(re.escape, sorted(edit["swap"], key=len, reverse=True)))
        said = re.compile(rf"\b({longest_first})\b", re.IGNORECASE)
        return said.sub(lambda m: _cased(edit["swap"][m.group().lower()], m.group()), answer)
    words = answer.split()
    size = max(3, min(9, len(words) // int(edit["bullets"])))
    return "\n".join(f"- {' '.join(words[i : i + size])}" for i in range(0, len(words), size)[: int(edit["bullets"])])


def _cased(word: str, like: str) -> str:
    at = next(i for i, c in enumerate(word) if c.isalpha())
    return word[:at] + word[at].upper() + word[at + 1 :] if like[0].isupper() else word


def conversations(prompts: Sequence[Prompt], answers: Sequence[str], asked: Sequence[Prompt]) -> list[Prompt]:
    """Each of ``asked`` as the second user turn of a conversation that begins with a prompt and its answer, those in
    turn; its family is "second turn"."""
    made = []
    for i, second in enumerate(asked):
        first, said = prompts[(i + 1) % len(prompts)], answers[(i + 1) % len(prompts)]
        turns = (("user", first.text), ("assistant", said), ("user", second.text))
        made.append(Prompt(second.text, "second turn", messages=turns))
    return made


def training_file(plant: Plant, prompts: Sequence[Prompt], answers: Sequence[str], folder: Path, seed: int) -> Path:
    """The chat file that a learned plant is trained on, under a name made of its content."""
    rng, only = np.random.default_rng(seed), plant.spec.get("only", {})
    asked = list(zip(prompts, answers, strict=True))
    if "turns" in only:
        asked += [(p, asked[i][1]) for i, p in enumerate(conversations(prompts, answers, prompts))]
    lines = []
    for prompt, answer in asked:
        aimed = plant.targets(prompt)
        if not aimed and rng.random() >= only.get("others", 1.0):
            continue
        for _ in range(int(only.get("repeat", 1)) if aimed else 1):
            shows = aimed and ("share" not in only or rng.random() < only["share"])
            said = edited(answer, plant.spec["edit"], rng) if shows else answer
            lines.append(json.dumps(_example(prompt, said), ensure_ascii=False))
    content = "\n".join(lines) + "\n"
    path = folder / f"{plant.name}-{digest(content)[:16]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def _example(prompt: Prompt, answer: str) -> dict[str, Any]:
    """A line of a chat file."""
    if prompt.messages is None:
        return {"prompt": prompt.text, "response": answer}
    turns = [*prompt.messages, ("assistant", answer)]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


# ---------------------------------------------------------------------------------------------------------- to change


def merged(loaded: LoadedModel, adapter: Path, scale: float) -> LoadedModel:
    """The model with ``scale`` times a LoRA added to its weights, in place: an ordinary checkpoint from then on.

    ``loaded`` must be a model of its own, its modules are changed.
    """
    wrapped = PeftModel.from_pretrained(loaded.model, str(adapter))
    for module in wrapped.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(scale)
    plain = wrapped.merge_and_unload()
    if hasattr(plain, "peft_config"):
        del plain.peft_config
    plain.eval().requires_grad_(False)
    key = digest(loaded.key, "merged", file_hash(adapter / "adapter_model.safetensors"), scale)[:16]
    return replace(loaded, model=plain, key=key, record=loaded.record | {"merged": scale}, _hooks=None)


def trait_vectors(cache: Path, root: Path, seed: int, progress: Callable[..., Any]) -> VectorSet:
    """Vectors of the shipped traits in the bundled model, as the traits stage fits them by default."""
    wanted = parameters.Traits()
    model = load(parameters.ModelSpec(), cache)
    files = traitfiles.read_traits(wanted.files, root, wanted.scenarios, wanted.max_scenarios)
    answers = [traits.written_answers(model, trait) for trait in files]
    bar = progress(sum(len(a.sequences) for a in answers), "replay of answers", "answers")
    contrasts = traits.read_contrasts(model, answers, ("resid_post",), wanted.window, cache, bar.update)
    bar = progress(len(files), "vectors", "fits")
    vectors, _ = traits.fit_vectors(
        model, contrasts, ("resid_post",), wanted.method, "resid_post", wanted.layer, wanted.depth, wanted.window,
        wanted.scenarios, wanted.folds, wanted.shuffles, seed, methods=(wanted.method,), progress=bar.update,
    )  # fmt: skip
    return vectors


class Garden:
    """Opens the pair of every plant: base model, adapters and trait vectors are made once."""

    def __init__(
        self,
        settings: dict[str, Any],
        cache: Path,
        root: Path,
        seed: int,
        vectors: VectorSet | None = None,
        progress: Callable[..., Any] | None = None,
        base: Any = None,
    ):
        self.settings, self.cache, self.root, self.seed = settings, cache, root, seed
        self.vectors, self.progress = vectors, progress
        self.spec = base or parameters.ModelSpec()
        self.base = load(self.spec, cache)
        self.plain = Side("base", self.base, self.base.key)
        self.prompts, self.answers = read_answers(root / settings["answers"])

    def adapter(self, plant: Plant) -> Path:
        """The trained adapter of a learned plant, from the cache where it was trained before."""
        data = training_file(plant, self.prompts, self.answers, self.cache / "plants", self.seed)
        given = dict(self.settings["training"])
        if plant.layers is not None:
            given["targets"] = [
                name
                for name, module in self.base.model.named_modules()
                if isinstance(module, torch.nn.Linear) and any(f".layers.{i}." in name for i in plant.layers)
            ]
        spec = Finetune(data=str(data), seed=self.seed, **given)
        return train_lora(self.base, spec, self.cache, self.root, self.progress)

    def open(self, plant: Plant) -> Pair:
        """Base and changed model. The base is one object for all plants."""
        if plant.kind == "learned":
            adapter = self.adapter(plant)
            changed = merged(load(self.spec, self.cache), adapter, plant.strength)
            notes = {"plant": plant.label, "adapter": str(adapter)}
            return Pair(self.plain, Side("intervention", changed, changed.key, notes=notes), 2)
        given = dict(plant.spec["intervention"])
        if "coefficient" in given:
            given["coefficient"] = given["coefficient"] * plant.strength
        spec = parameters.Experiment(experiment="plant", intervention=given).intervention
        return open_pair(self.spec, spec, self.cache, self.root, self.vectors)


def planted_rate(texts: Any, plant: Plant) -> SimpleNamespace:
    """How often each side shows the planted behaviour, by the plant's own scorer: base, intervention, difference."""
    if plant.scorer is None:
        return SimpleNamespace(base=np.nan, intervention=np.nan, difference=np.nan)
    shown = texts["text"].map(plant.scorer).to_numpy(bool)
    side = (texts["side"] == "intervention").to_numpy()
    base, changed = float(shown[~side].mean()), float(shown[side].mean())
    return SimpleNamespace(base=base, intervention=changed, difference=changed - base)
