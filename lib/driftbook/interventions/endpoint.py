"""``kind: endpoint``: a server answers for the changed side."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from driftbook.sections import Intervention, Opening, Server, intervention, short_name

if TYPE_CHECKING:
    from driftbook.models.loading import LoadedModel
    from driftbook.models.sides import Pair


@intervention
class Endpoint(Intervention, Server):
    """An OpenAI-compatible server that answers for the changed side."""

    kind: Literal["endpoint"] = "endpoint"
    base_url: str
    model: str
    timeout_s: float = Field(120.0, gt=0)
    answers_here: ClassVar[tuple[str, ...]] = ("base",)

    def open(self, base: LoadedModel, opening: Opening) -> Pair:
        """The base reads what the server answers."""
        from driftbook.models.endpoint import EndpointEngine  # torch; parameters are read without it
        from driftbook.models.sides import Pair, Side
        from driftbook.store import digest

        more = [m for m in (self.extra_body, self.template_args) if m]
        key = digest("endpoint", self.base_url, self.model, *more)[:16]
        notes = {"endpoint": self.base_url, "answers_of": self.model}
        engine = EndpointEngine(self, base, opening.cache)
        return Pair(Side("base", base, base.key), Side("intervention", base, key, notes=notes, engine=engine), 1)

    def by(self) -> str:
        return f"into {self.model}"

    def called(self, base: str) -> str:
        name = short_name(self.model)
        return name if name != base else f"{base}, changed"

    def plan_note(self, elsewhere: int) -> str:
        return f"{elsewhere:,} answers are asked of {self.base_url}: not timed, not priced"
