"""Driftbook tells how a language model changed: which behaviours moved, where inside, and whether that is real."""
