"""The work of ``bench-capture-peers`` as one other tool does it: ``python peer_worker.py PEER FOLDER``.

Runs under any interpreter that has the peer, and imports nothing of driftbook. ``FOLDER`` holds what
``driftbench.peers.write_spec`` wrote; the answers go there as ``PEER.npz`` and ``PEER.json``. Each peer is used
as its documentation says: hooks that project where they stand, one batch, a key-value cache.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # weights are read from a folder; no peer may ask a server about them


class Collected:
    """Projections in the order in which hooks gave them: ``[rows, tokens, points, vectors]`` over all forwards."""

    def __init__(self, vectors: torch.Tensor):
        self.vectors = vectors
        self.forwards: list[list[torch.Tensor]] = []

    def __call__(self, point: int, h: torch.Tensor) -> None:
        if point == 0:
            self.forwards.append([])
        self.forwards[-1].append(h.float() @ self.vectors[point])

    def array(self) -> np.ndarray:
        return torch.cat([torch.stack(points, 2) for points in self.forwards], 1).cpu().numpy()


class Transformers:
    """Hooks written by hand around ``generate``: what one does without a tool."""

    packages = ("transformers",)

    def __init__(self, spec: dict[str, Any], vectors: torch.Tensor):
        from transformers import AutoModelForCausalLM  # seconds

        self.spec, self.vectors = spec, vectors
        self.model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32).eval()
        self.model.generation_config.eos_token_id = None  # every row gets all its tokens

    def _hooked(self, collect: Collected) -> list[Any]:
        handles = []
        for i, block in enumerate(self.model.model.layers):
            handles += [
                block.register_forward_pre_hook(lambda _m, args, i=i: collect(3 * i, args[0])),
                block.post_attention_layernorm.register_forward_pre_hook(
                    lambda _m, args, i=i: collect(3 * i + 1, args[0])
                ),
                block.register_forward_hook(
                    lambda _m, _a, out, i=i: collect(3 * i + 2, out if isinstance(out, torch.Tensor) else out[0])
                ),
            ]
        return handles

    def live(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        collect = Collected(self.vectors)
        handles = self._hooked(collect)
        n = self.spec["max_new_tokens"]
        out = self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=n, do_sample=False, pad_token_id=0)
        for handle in handles:
            handle.remove()
        return out[:, ids.shape[1] :].numpy(), collect.array()

    def replay(self, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
        collect = Collected(self.vectors)
        handles = self._hooked(collect)
        self.model.model(input_ids=ids, attention_mask=mask, use_cache=False)
        for handle in handles:
            handle.remove()
        return collect.array()


class TransformerLens:
    """``TransformerBridge`` (4.x) with forward hooks on ``hook_resid_pre``, ``hook_resid_mid`` and
    ``hook_resid_post``."""

    packages = ("transformer-lens", "transformers")

    def __init__(self, spec: dict[str, Any], vectors: torch.Tensor):
        from transformer_lens.model_bridge import TransformerBridge  # in an environment of its own

        self.spec, self.vectors = spec, vectors
        self.model = TransformerBridge.boot_transformers(spec["model"], device="cpu", dtype=torch.float32)

    def _hooks(self, collect: Collected) -> list[tuple[str, Any]]:
        sites = ("pre", "mid", "post")
        return [
            (f"blocks.{i}.hook_resid_{site}", lambda h, hook, p=3 * i + j: collect(p, h))
            for i in range(self.spec["layers"])
            for j, site in enumerate(sites)
        ]

    def live(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        collect = Collected(self.vectors)
        with self.model.hooks(fwd_hooks=self._hooks(collect)):
            out = self.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=self.spec["max_new_tokens"],
                do_sample=False,
                stop_at_eos=False,
                return_type="tokens",
                verbose=False,
            )
        return out[:, ids.shape[1] :].numpy(), collect.array()

    def replay(self, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
        collect = Collected(self.vectors)
        self.model.run_with_hooks(ids, attention_mask=mask, return_type=None, fwd_hooks=self._hooks(collect))
        return collect.array()


class NNsight:
    """``generate`` with ``tracer.iter`` over the tokens, and ``trace`` for texts that exist."""

    packages = ("nnsight", "transformers")

    def __init__(self, spec: dict[str, Any], vectors: torch.Tensor):
        from nnsight import TransformersModel  # in an environment of its own

        self.spec, self.vectors = spec, vectors
        self.model = TransformersModel(spec["model"], task="text-generation", dispatch=True, dtype=torch.float32)
        self.model._module.generation_config.eos_token_id = None

    def live(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        import nnsight  # in an environment of its own

        model, vectors, n = self.model, self.vectors, self.spec["max_new_tokens"]
        layers = list(model.model.layers)
        batch = {"input_ids": ids, "attention_mask": mask}
        with model.generate(batch, max_new_tokens=n, do_sample=False, pad_token_id=0) as tracer:
            steps = nnsight.save([])
            for _ in tracer.iter[:n]:
                points = []
                for i, layer in enumerate(layers):
                    points.append(layer.input @ vectors[3 * i])
                    points.append(layer.post_attention_layernorm.input @ vectors[3 * i + 1])
                    points.append(layer.output @ vectors[3 * i + 2])
                steps.append(torch.stack(points, 2))
            out = tracer.result.save()
        return out[:, ids.shape[1] :].numpy(), torch.cat(list(steps), 1).cpu().numpy()

    def replay(self, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
        import nnsight  # in an environment of its own

        model, vectors = self.model, self.vectors
        layers = list(model.model.layers)
        with model.trace({"input_ids": ids, "attention_mask": mask}, use_cache=False, logits_to_keep=1):
            points = nnsight.save([])
            for i, layer in enumerate(layers):
                points.append(layer.input @ vectors[3 * i])
                points.append(layer.post_attention_layernorm.input @ vectors[3 * i + 1])
                points.append(layer.output @ vectors[3 * i + 2])
        return torch.stack(list(points), 2).cpu().numpy()


PEERS = {"transformers": Transformers, "transformer_lens": TransformerLens, "nnsight": NNsight}


def padded(rows: list[list[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, ``[rows, width]``."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, at], mask[i, at] = torch.tensor(row), 1
    return ids, mask


def main(peer: str, folder: Path) -> None:
    spec = json.loads((folder / "spec.json").read_text())
    vectors = torch.from_numpy(np.load(folder / "vectors.npy"))
    begun = time.perf_counter()
    tool = PEERS[peer](spec, vectors)
    loaded = time.perf_counter() - begun
    prompts, prompt_mask = padded(spec["prompts"], left=True)
    texts, text_mask = padded(spec["texts"], left=False)
    seconds: dict[str, list[float]] = {"live": [], "replay": []}
    cpu: dict[str, list[float]] = {"live": [], "replay": []}
    with torch.no_grad():
        for turn in range(spec["repeats"] + 1):  # the first turn warms up, and is not counted
            wall, used = [time.perf_counter()], [time.process_time()]
            tokens, live = tool.live(prompts, prompt_mask)
            wall.append(time.perf_counter())
            used.append(time.process_time())
            replay = tool.replay(texts, text_mask)
            wall.append(time.perf_counter())
            used.append(time.process_time())
            for work, k in (("live", 0), ("replay", 1)) if turn else ():
                seconds[work].append(wall[k + 1] - wall[k])
                cpu[work].append(used[k + 1] - used[k])
    np.savez(folder / f"{peer}.npz", tokens=tokens, live=live, replay=replay)
    versions = {name: version(name) for name in ("torch", *tool.packages)}
    (folder / f"{peer}.json").write_text(
        json.dumps({"seconds": seconds, "cpu": cpu, "load": loaded, "versions": versions})
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
