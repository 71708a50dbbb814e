"""The functions that ``import driftbook`` offers: thin, with the defaults of the parameter models."""
