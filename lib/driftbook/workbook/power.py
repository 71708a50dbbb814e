"""Whether the prompts of an experiment are enough to confirm anything: said before the run, not after it."""

from __future__ import annotations

from pathlib import Path

from driftbook.behaviours.catalogue import panel
from driftbook.evidence.paired import prompts_for, scope_for, smallest_seen
from driftbook.parameters import BenchExperiment, load_experiment
from driftbook.workbook.plan import asked_prompts

RARE = 0.1  # the share of answers that the note speaks of
CLEAR = 0.4  # a change of it that has to be visible, or the prompts are too few


def few_prompts(experiment_file: Path, root: Path) -> str:
    """What so few prompts cannot confirm, and how many it takes. Empty where there are enough, where not all of them
    are on this disk, where each is answered many times, and for a bench."""
    experiment = load_experiment(experiment_file, root)
    if isinstance(experiment, BenchExperiment):
        return ""
    prompts, elsewhere = asked_prompts(experiment, root)
    count = min(len(prompts), experiment.decode.max_prompts or len(prompts))
    if elsewhere or scope_for(count, experiment.decode.samples or 1).name == "these prompts":
        return ""
    tests, alpha = len(panel()) + experiment.cluster.hypotheses, experiment.validation.alpha
    seen = smallest_seen(count, RARE, tests, alpha) if count else None
    if seen is not None and seen <= CLEAR:
        return ""
    least = "nothing can be confirmed with them"
    if seen is not None:
        least = f"of a behaviour in {RARE:.0%} of answers only a change to {RARE + seen:.0%} or more would be confirmed"
    needed = prompts_for(RARE, RARE + CLEAR, tests, alpha)
    return f"{count} prompts are few: {least}; a change to {RARE + CLEAR:.0%} takes {needed} prompts (decode.prompts)"
