"""A run, as a notebook holds it in its hand, and where runs lie on disk.

The runner starts a notebook headless and says by environment variables where the run is built; a notebook that was
opened in JupyterLab builds it in ``outputs/<experiment>/.lab/<stage>/`` and reads the good headless runs of the
stages before it.
"""

from __future__ import annotations

import json
import math
import numbers
import os
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driftbook.errors import DriftbookError
from driftbook.members import member_name
from driftbook.parameters import BenchExperiment, Experiment, is_bench, shelf, validate_cell
from driftbook.workbook.wording import by_name
from driftbook.workers import OPENED, peak_rss_mb

if TYPE_CHECKING:
    import pandas as pd
    from tqdm import tqdm

    from driftbook.workbook.figures import Figure
    from driftbook.workbook.tables import Table

RUN_DIR = "DRIFTBOOK_RUN_DIR"
OUTPUTS = "DRIFTBOOK_OUTPUTS"
FINISHED = "finished.json"
RUN_FILE = "run.json"
MEMBERS = "members.json"  # of a series: those that its run reads


@dataclass(frozen=True)
class Layout:
    """Where everything lies. ``root`` is the repository; ``outputs`` is ``root/outputs`` unless a test says else."""

    root: Path
    outputs: Path

    @classmethod
    def of(cls, root: Path, outputs: Path | None = None) -> Layout:
        root = root.resolve()
        return cls(root, (outputs or root / "outputs").resolve())

    @property
    def cache(self) -> Path:
        return self.outputs / ".cache"

    def parameters(self, experiment: str) -> Path:
        return self.root / "params" / shelf(experiment) / f"{experiment}.yml"

    def notebook(self, stage: str) -> Path:
        return self.root / "notebooks" / shelf(stage) / f"{stage}.ipynb"

    def folder(self, experiment: str) -> Path:
        """``outputs/<experiment>``; of a member of a series ``outputs/<series>/members/<name>``."""
        series, member = member_name(experiment)
        return self.outputs / series / "members" / member if member else self.outputs / series

    def parent(self, experiment: str, stage: str) -> Path:
        """The folder that holds the run folder: a bench is its own and only stage, straight under ``outputs/``, and the
        traits of a series are read once for all members."""
        if is_bench(stage):
            return self.outputs
        return self.folder(member_name(experiment)[0] if stage == "traits" else experiment)

    def stage(self, experiment: str, stage: str) -> Path:
        """The last good run."""
        return self.parent(experiment, stage) / stage

    def failed(self, experiment: str, stage: str) -> Path:
        return self.parent(experiment, stage) / f"{stage}.failed"

    def staging(self, experiment: str, stage: str) -> Path:
        return self.parent(experiment, stage) / f".staging-{stage}-{os.getpid()}"

    def retired(self, experiment: str, stage: str) -> Path:
        """Where the last good run waits between the two renames of a swap."""
        return self.parent(experiment, stage) / f".retired-{stage}"

    def lock(self, experiment: str, stage: str) -> Path:
        return self.parent(experiment, stage) / f".{stage}.lock"

    def lab(self, experiment: str, stage: str) -> Path:
        """Runs of a notebook that a person has open."""
        return self.folder(experiment) / ".lab" / stage


def label(experiment: str, stage: str) -> str:
    """What a stage of an experiment is called in messages."""
    experiment = member_name(experiment)[0] if stage == "traits" else experiment
    return stage if experiment == stage else f"{experiment}/{stage}"


def find_root(start: Path | None = None) -> Path:
    """The repository above ``start`` (default: the working folder): the first with ``params`` and ``notebooks``."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "params").is_dir() and (folder / "notebooks").is_dir():
            return folder
    raise DriftbookError(
        f"{start} is not inside a driftbook repository (no folder above it holds params/ and notebooks/)"
    )


def plain(value: Any) -> Any:
    """``value`` as JSON holds it: numpy scalars and paths unwrapped, what is not finite as text (JSON has no NaN)."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(v) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return plain(value.item())
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else str(float(value))
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be kept in a run's JSON")


def write_json(path: Path, value: Any) -> None:
    """Write JSON through a rename, so that a reader never sees half a file."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DriftbookError(f"{path} is damaged ({error}); delete it and run again") from None


@dataclass
class Run:
    """One stage of one experiment while its notebook runs."""

    stage: str
    params: Experiment | BenchExperiment
    layout: Layout
    folder: Path
    headless: bool
    metrics: dict[str, float | str] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)
    headlines: list[dict[str, Any]] = field(default_factory=list)
    sentence: str = ""
    started: float = field(default_factory=time.monotonic)

    # ------------------------------------------------------------------------------------------------ what goes in

    @property
    def section(self) -> Any:
        """The stage's own parameters."""
        return self.params.section(self.stage)

    @property
    def seed(self) -> int:
        return self.params.seed

    @property
    def names(self) -> tuple[str, str] | None:
        """What the two models are called in reports; None for a bench."""
        return self.params.called

    @property
    def root(self) -> Path:
        """The repository; paths in parameters are relative to it."""
        return self.layout.root

    @property
    def cache(self) -> Path:
        """Content-addressed caches that all experiments share."""
        return self.layout.cache

    @property
    def data(self) -> Path:
        """Where this stage writes its tables and tensors."""
        return self.folder / "data"

    def input(self, stage: str) -> Path:
        """The data folder of a stage before this one. Raises ``DriftbookError`` if it has not been run."""
        experiment = self.params.experiment
        good = self.layout.stage(experiment, stage)
        if (good / RUN_FILE).is_file():
            return good / "data"
        lab = self.layout.lab(experiment, stage)
        if not self.headless and (lab / FINISHED).is_file():
            return lab / "data"
        raise DriftbookError(f"{self.stage} reads {stage}, and {good} holds no good run: make {stage} EXP={experiment}")

    def members(self) -> dict[str, Path]:
        """Of a series: name to ``outputs/<series>/members/<name>`` of each change whose runs hold (in a notebook that a
        person has open: that has a good run), in the order of the series."""
        known = self.folder / MEMBERS
        held = read_json(known) if known.is_file() else None
        found = {}
        for member in self.params.members:
            name = f"{self.params.experiment}:{member.name}"
            good = (self.layout.stage(name, "validate") / RUN_FILE).is_file()
            if good and (held is None or name in held):
                found[member.name] = self.layout.folder(name)
        return found

    # ------------------------------------------------------------------------------------------------ what comes out

    def metric(self, name: str, value: float | str, low: float | None = None, high: float | None = None) -> None:
        """One number or short text of ``metrics.json``, and the ends of its interval as ``<name>_low`` and
        ``<name>_high``. What is not finite is kept as ``"nan"`` or ``"inf"``."""
        for suffix, number in (("", value), ("_low", low), ("_high", high)):
            number = plain(number)
            if suffix and number is None:
                continue
            if not isinstance(number, (int, float, str)):
                raise TypeError(f"metric {name + suffix!r} must be a number or a text, not {number!r}")
            self.metrics[name + suffix] = number

    def record(self, name: str, value: Any) -> None:
        """How the run was carried out, for ``run.json``: ``device`` and why, hashes of model files, ..."""
        self.records[name] = plain(value)

    def answer(self, sentence: str) -> None:
        """The answer of the stage in one sentence: the first line of the report."""
        self.sentence = by_name(str(sentence), self.names) if self.names else str(sentence)

    def headline(
        self,
        label: str,
        value: float | str,
        low: float | None = None,
        high: float | None = None,
        baseline: float | str | None = None,
        unit: str = "",
        spread: str = "95% interval",
    ) -> None:
        """One of three to five figures at the top of the report, with its interval and what to compare it to;
        ``spread`` says what ``low`` and ``high`` are."""
        entry = {"label": label, "value": value, "low": low, "high": high, "baseline": baseline, "unit": unit}
        entry["spread"] = spread
        self.headlines.append(plain(entry))

    def progress(self, source: int | Iterable[Any] | None, label: str, unit: str = "items") -> tqdm[Any]:
        """Progress over an iterable, or towards a total with ``.update(n)``."""
        from driftbook.workbook.progress import open_progress  # `make why` needs no tqdm

        return open_progress(source, label, unit, self.headless)

    def show(self, figure: Figure | Table | None) -> None:
        """Show a figure or a table here and in the report; nothing where there was nothing to draw (None)."""
        from IPython.display import display  # `make why` needs no IPython

        if figure is not None:
            display(figure.named(self.names) if self.names else figure)

    def table(
        self,
        df: pd.DataFrame,
        title: str,
        caption: str = "",
        columns: list[str] | None = None,
        max_rows: int | None = None,
    ) -> None:
        """Show a table, escaped and sortable, here and in the report."""
        from driftbook.workbook.tables import Table  # pandas: half a second that `make why` need not pay

        self.show(Table(df, title=title, caption=caption, columns=columns, max_rows=max_rows))

    def finish(self) -> None:
        """Write ``metrics.json``, end the workers, and say that the notebook got to its end. The last cell of every
        notebook."""
        for workers in filter(None, OPENED.values()):
            workers.close()
        self.metrics["seconds"] = round(time.monotonic() - self.started, 3)
        self.metrics["peak_rss_mb"] = peak_rss_mb()
        write_json(self.folder / "metrics.json", self.metrics)
        finished = {"stage": self.stage, "answer": self.sentence, "headlines": self.headlines, "records": self.records}
        write_json(self.folder / FINISHED, finished)


def open_run(stage: str, **cell: Any) -> Run:
    """Open the run of one stage from what its notebook's parameter cell holds.

    Raises ``ParameterError`` when the cell does not validate: the same model checks it as checks ``params/*.yml``.
    """
    params = validate_cell(stage, cell)
    layout, headless = _layout()
    plain_warnings()
    if headless:
        folder = Path(os.environ[RUN_DIR])
    elif is_bench(stage):
        folder = layout.outputs / ".lab" / stage
    else:
        folder = layout.lab(params.experiment, stage)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / FINISHED).unlink(missing_ok=True)
    layout.cache.mkdir(parents=True, exist_ok=True)
    return Run(stage=stage, params=params, layout=layout, folder=folder, headless=headless)


_FORMAT = warnings.formatwarning


def plain_warnings() -> None:
    """A warning of driftbook's own is a sentence for its reader, who needs no line of the code that said it."""
    warnings.formatwarning = _said


def _said(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    own = Path(filename).is_relative_to(Path(__file__).parents[1]) or "ipykernel" in filename
    return f"Warning: {message}\n" if own else _FORMAT(message, category, filename, lineno, line)


def _layout() -> tuple[Layout, bool]:
    headless = RUN_DIR in os.environ
    outputs = Path(os.environ[OUTPUTS]) if OUTPUTS in os.environ else None
    return Layout.of(find_root(), outputs), headless
