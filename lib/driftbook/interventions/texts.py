"""``kind: texts``: answers of both sides that were made elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from driftbook.hashes import file_hash
from driftbook.prompts import SIDES, SideName
from driftbook.sections import Intervention, Opening, intervention
from driftbook.text_tables import TextTable, read_text_table

if TYPE_CHECKING:
    from driftbook.models.loading import LoadedModel
    from driftbook.models.sides import Pair


@intervention
class Texts(Intervention):
    """Answers made elsewhere: a parquet, CSV or JSONL table with ``side``, ``prompt`` and ``text``."""

    kind: Literal["texts"] = "texts"
    path: str
    change: str | None = Field(None, description="of a table with texts of several changes, the one to read")
    unreadable: int = Field(0, ge=0, description="rows without a text or a prompt that may be left out")
    answers_here: ClassVar[tuple[str, ...]] = ()
    brings_prompts: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ("path",)

    def open(self, base: LoadedModel, opening: Opening) -> Pair:
        """The base reads the answers of both sides, where it was loaded."""
        from driftbook.models.sides import Pair, Side  # torch; parameters are read without it
        from driftbook.models.table_engine import TableEngine
        from driftbook.store import digest

        table = self.table(opening.root)
        key = digest("texts", file_hash(table.path), *([self.change] if self.change else []))[:16]
        notes = {"texts": table.path.name} | ({"change": self.change} if self.change else {})
        notes |= {"unreadable": f"{len(table.unreadable)} rows left out"} if table.unreadable else {}

        def noted(name: SideName) -> dict[str, str]:
            asked = "; ".join(s or "none" for s in table.systems.get(name, ()))
            return notes | ({"system": asked} if asked else {})

        sides = [Side(name, base, key, notes=noted(name), engine=TableEngine(table, name, base)) for name in SIDES]
        return Pair(*sides, model_loads=int(bool(base.record)), prompts=table.prompts)

    def by(self) -> str:
        return f"into what wrote {Path(self.path).name}"

    def title(self, base: str) -> str:
        return f"Answers of two models to the same prompts, from {Path(self.path).name}."

    def called(self, base: str) -> str:
        return self.change or Path(self.path).stem

    def table(self, root: Path) -> TextTable:
        return read_text_table(root / Path(self.path).expanduser(), self.change, self.unreadable)
