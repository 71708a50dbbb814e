"""A real server for tests: ``transformers serve`` on a tiny random model, started once for all that ask for it.

conftest.py makes the fixture ``server`` known to every test.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from driftbench.serving import Server, served_copy, transformers_server
from models import saved


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    """``base_url`` and ``model`` of a server that samples as it is asked to; ``model`` is its folder, too."""
    folder = tmp_path_factory.mktemp("served")
    model = served_copy(saved(folder / "original"), folder / "model")
    with transformers_server(model, folder / "log.txt") as started:
        yield started
