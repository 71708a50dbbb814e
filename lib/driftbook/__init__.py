"""Driftbook tells how a language model changed: which behaviours moved, where inside, and whether that is real.

The names of the library (``docs/library.md``) are imported when they are first asked for, so that importing the
package takes no time and changes nothing. Imports stand here as they are, since change keys read them.
"""

from __future__ import annotations

from typing import Any

# What is known of texts needs no model and no torch.
_TEXTS = (
    *("Claim", "Comparison", "DriftbookError", "Measure", "Prompt", "compare", "measure", "panel", "read_prompts"),
    *("test", "words"),
)
_MODELS = (
    *("Ablate", "Adapter", "Checkpoint", "Divergence", "Quantize", "States", "Steer", "SystemPrompt", "Vectors"),
    *("amplify", "divergence", "fit_vectors", "generate", "load", "pair", "project"),
)
_EXPERIMENTS = ("load_experiment", "run")

__all__ = sorted((*_TEXTS, *_MODELS, *_EXPERIMENTS))


def __getattr__(name: str) -> Any:
    if name in _TEXTS:
        from driftbook.front import texts as home
    elif name in _MODELS:
        from driftbook.front import models as home
    elif name in _EXPERIMENTS:
        from driftbook.front import experiments as home
    else:
        raise AttributeError(f"module 'driftbook' has no attribute {name!r}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
