"""What measures driftbook: planted changes, null runs, peers, simulations, clocks. driftbook never imports it."""

import driftbook.models  # noqa: F401 (what it sets must be set before torch is imported)
