"""Whether the prompts of an experiment are enough to confirm anything: said before the run, not after it.

Prompts that look alike count once (``discovery.splits``), as they will in every test.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np

from driftbook.behaviours.catalogue import panel
from driftbook.behaviours.own import measures_of
from driftbook.discovery.splits import prompt_set, told
from driftbook.errors import ParameterError, PromptError
from driftbook.evidence.eprocess import e_path
from driftbook.evidence.paired import prompts_for, scope_for, smallest_seen
from driftbook.parameters import COUNTED, BenchExperiment, Experiment, load_experiment
from driftbook.prompts import PromptSet
from driftbook.workbook.plan import asked_prompts

RARE = 0.1  # the share of answers that the note speaks of
CLEAR = 0.4  # a change of it that has to be visible, or the prompts are too few
FREE = ("lexicon", "embedding")  # judges whose verdicts cost nothing: all prompts are read, on a fixed sample


def few_prompts(experiment_file: Path, root: Path) -> str:
    """What so few prompts cannot confirm, and how many it takes. Empty where there are enough, where not all of them
    are on this disk, and for a bench; where each is answered many times, only what a paid judge cannot confirm.

    Raises ParameterError and PromptError where the experiment or its behaviours cannot be read.
    """
    experiment = load_experiment(experiment_file, root)
    if isinstance(experiment, BenchExperiment):
        return ""
    measures_of(experiment.validation.behaviours, root)  # a wrong one is told now, and not after all stages
    known = [*COUNTED, "judge", *(measure.name for measure in panel())]
    for h in experiment.validation.hypotheses:
        if h.measure not in (None, *known):
            close = difflib.get_close_matches(h.measure, known, 1)
            hint = f", did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
            raise ParameterError(f"{experiment_file}: validate.hypotheses: no measure is called {h.measure!r}{hint}")
    prompts, elsewhere = asked_prompts(experiment, root)
    if elsewhere:
        return ""
    decode = experiment.decode
    try:
        chosen = prompt_set(prompts, decode.splits.model_dump(by_alias=True), decode.max_prompts)
    except PromptError as error:
        return f"{error} (decode.prompts)"
    return "; ".join(filter(None, [_counted(experiment, chosen), *_judged(experiment, chosen)]))


def _counted(experiment: Experiment, chosen: PromptSet) -> str:
    """What behaviours that are counted would need."""
    count = chosen.units
    if scope_for(count, experiment.decode.samples or 1).name == "these prompts":
        return ""
    tests, alpha = len(panel()) + experiment.cluster.hypotheses, experiment.validation.alpha
    seen = smallest_seen(count, RARE, tests, alpha)
    if seen is not None and seen <= CLEAR:
        return ""
    least = "nothing can be confirmed with them"
    if seen is not None:
        least = f"of a behaviour in {RARE:.0%} of answers only a change to {RARE + seen:.0%} or more would be confirmed"
    needed = prompts_for(RARE, RARE + CLEAR, tests, alpha)
    said = told(chosen.prompts, [p.unit for p in chosen.prompts])
    return f"{said} are few: {least}; a change to {RARE + CLEAR:.0%} takes {needed} prompts (decode.prompts)"


def _judged(experiment: Experiment, chosen: PromptSet) -> list[str]:
    """What a judge that stops early could never confirm, however clear its verdicts."""
    section = experiment.validation
    tester = section.judges.expensive or section.judges.cheap
    asks = section.labeller == "llm" or any(h.measure == "judge" or not h.words for h in section.hypotheses)
    if tester.kind in FREE or not asks:
        return []
    notes = []
    split = {name: len({p.unit for p in chosen.prompts if p.split == name}) for name in ("screen", "validate")}
    least = next(n for n in range(1, 100) if 0.5**n <= section.screen_level)  # the sign flips of n wins
    if section.cascade == "screen_then_test" and 0 < split["screen"] < least:
        notes.append(
            f"{split['screen']} prompts of split screen can let no hypothesis through; it takes {least} "
            "(decode.splits.screen, or 0 for none)"
        )
    wealth = e_path(np.ones(10_000), section.margin_of("score"))
    level = section.alpha / 2  # the other half is for what is counted
    enough = int(np.argmax(wealth >= 1 / level)) + 1
    if split["validate"] < enough:
        notes.append(
            f"{split['validate']} prompts of split validate can confirm nothing that a judge reads; it takes {enough} "
            "(decode.splits.validate, decode.prompts)"
        )
    return notes
