"""``kind: prompt``: a system prompt before every prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from driftbook.sections import Intervention, Opening, intervention

if TYPE_CHECKING:
    from driftbook.models.loading import LoadedModel
    from driftbook.models.sides import Pair


@intervention
class SystemPrompt(Intervention):
    kind: Literal["prompt"] = "prompt"
    system: str
    changes_the_prompt: ClassVar[bool] = True

    def open(self, base: LoadedModel, opening: Opening) -> Pair:
        from driftbook.models.sides import Pair, Side  # torch; parameters are read without it
        from driftbook.store import digest

        key = digest(base.key, "prompt", self.system)[:16]
        return Pair(Side("base", base, base.key), Side("intervention", base, key, system=self.system), 1)

    def called(self, base: str) -> str:
        return f"{base}, with a system prompt"

    def by(self) -> str:
        return "under a system prompt"
