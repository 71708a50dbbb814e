"""The overnight capture as the scripts before ran it: ``python overnight_before.py SPEC``, for one prompt or for many.

It is run by its path, and imports nothing of driftbook: what driftbook sets and imports is no cost or gain of this way.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


class Clock:
    """Seconds by part of the work; what is between two laps belongs to the second."""

    def __init__(self):
        self.laps = {"load": 0.0, "tier2": 0.0, "tier3": 0.0}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] += now - self.last
        self.last = now


def told(laps: dict[str, float]) -> str:
    """What a way prints last: its laps and the peak of its memory, as JSON."""
    return json.dumps(laps | {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})


def one_load(work: dict[str, Any]) -> dict[str, float]:
    """What the scripts did, for each prompt in turn: states to the host at every token, then one vector on them."""
    import torch  # here, for whoever wants the clock alone
    from transformers import AutoModelForCausalLM, AutoTokenizer

    clock = Clock()
    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    vector = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    captured: dict[tuple[int, str], list[Any]] = {}

    def keep(layer: int, site: str):
        def hook(_module, _inputs, output):
            value = output[0] if isinstance(output, tuple) else output
            captured.setdefault((layer, site), []).append(value.detach().cpu().clone())

        return hook

    for i, block in enumerate(model.model.layers):
        block.input_layernorm.register_forward_hook(keep(i, "resid_pre"))
        block.self_attn.register_forward_hook(keep(i, "attn"))
        block.register_forward_hook(keep(i, "resid_post"))
    clock.lap("load")
    tokens, layer, folder = 0, work["layer"], Path(work["folder"])
    for place, prompt in enumerate(work["prompts"]):
        captured.clear()
        inside = place in work["tier3"]
        handles = watch_inside(model.model.layers[layer], layer, keep) if inside else []
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            if inside:  # attention weights are formed by the eager kernel alone
                model.set_attn_implementation("eager")
            out = model.generate(
                **ids,
                max_new_tokens=work["max_new_tokens"],
                do_sample=True,
                temperature=0.7,
                pad_token_id=0,
                output_attentions=inside,
                return_dict_in_generate=True,
            )
            model.set_attn_implementation("sdpa")
        for handle in handles:
            handle.remove()
        tokens += out.sequences.shape[1] - ids["input_ids"].shape[1]
        stacked = {f"{at}.{site}": torch.cat([s.flatten(0, -2) for s in v]) for (at, site), v in captured.items()}
        sites = {k: (v @ vector).numpy() for k, v in stacked.items() if k.endswith(("resid_pre", "attn", "resid_post"))}
        np.savez(folder / f"prompt{place}.npz", **sites)
        if inside:
            weights = {f"attention{t}": step[layer].numpy() for t, step in enumerate(out.attentions)}
            own = {name: v.numpy() for name, v in stacked.items() if name.startswith(f"{layer}.")}
            np.savez(folder / f"inside{place}.npz", **weights, **own)
        clock.lap("tier3" if inside else "tier2")
    return clock.laps | {"tokens": tokens}


def watch_inside(block: Any, layer: int, keep: Any) -> list[Any]:
    attention, mlp = block.self_attn, block.mlp
    parts = {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj, "up": mlp.up_proj}
    parts |= {"activation": mlp.act_fn, "down": mlp.down_proj}
    return [module.register_forward_hook(keep(layer, name)) for name, module in parts.items()]


if __name__ == "__main__":
    print(told(one_load(json.loads(Path(sys.argv[1]).read_text()))))
