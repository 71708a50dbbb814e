"""What measures driftbook: planted changes, null runs, peers, simulations, clocks. driftbook never imports it."""
