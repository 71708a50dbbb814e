"""What a capture leaves on disk: which row is which token, and the numbers of every row, with a reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import save_file

from driftbook.errors import DriftbookError
from driftbook.evidence.shifts import Grid, Scale
from driftbook.models.captured import Probe, Sample
from driftbook.models.loading import LoadedModel
from driftbook.prompts import Prompt

ROWS, SCALE = "projections.safetensors", "scale.parquet"


def sample_table(samples: Sequence[Sample], prompts: Sequence[Prompt]) -> pd.DataFrame:
    """One row per answer: ``prompt_end`` is the number of prompt tokens, behind which the thought begins and
    then the response."""
    return pd.DataFrame(
        {
            "sample": [s.sample_id for s in samples],
            "side": [s.side for s in samples],
            "prompt_id": [prompts[s.prompt].prompt_id for s in samples],
            "sample_index": [s.sample for s in samples],
            "prompt_end": [len(s.sequence.prompt_ids) for s in samples],
            "response_tokens": [len(s.answer_ids) for s in samples],
            "thought_tokens": [s.thought for s in samples],
            "finish_reason": [s.finish_reason for s in samples],
        }
    )


def token_table(
    samples: Sequence[Sample], prompts: Sequence[Prompt], model: LoadedModel, convention: str
) -> pd.DataFrame:
    """One row per captured row, in the order of ``projections.safetensors``."""
    frames = []
    for s in samples:
        ids = s.sequence.ids
        n = len(s.sequence.prompt_ids)
        roles = prompt_roles(model, s.sequence.prompt_ids, prompts[s.prompt].text)
        roles += ["thought"] * s.thought + ["response"] * (len(ids) - n - s.thought)
        frames.append(
            pd.DataFrame(
                {
                    "sample": s.sample_id,
                    "side": s.side,
                    "prompt_id": prompts[s.prompt].prompt_id,
                    "sample_index": s.sample,
                    "position": np.arange(len(ids), dtype=np.int32),
                    "token": np.array(ids, np.int32),
                    "text": [model.tokenizer.decode([i]) for i in ids],
                    "role": roles,
                    "convention": convention,
                    "finished": s.finish_reason == "eos",
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def prompt_roles(model: LoadedModel, prompt_ids: Sequence[int], text: str) -> list[str]:
    """``prompt`` for the tokens that hold the user's text, ``template`` for everything around it."""
    pieces = [model.tokenizer.decode([i]) for i in prompt_ids]
    whole = "".join(pieces)
    begin = whole.rfind(text.strip())
    if begin < 0:  # byte-level pieces of rare characters do not join to the text: everything counts as prompt
        return ["prompt"] * len(pieces)
    end = begin + len(text.strip())
    roles, at = [], 0
    for piece in pieces:
        roles.append("prompt" if at < end and at + len(piece) > begin else "template")
        at += len(piece)
    return roles


def write_rows(folder: Path, samples: Sequence[Sample], probe: Probe, convention: str, scale: Scale) -> None:
    """``projections.safetensors``: ``projection`` ``[row, layer, site, trait]`` (h.v/|v|) and ``norm`` ``[row, layer,
    site]`` (|h|), float32, raw; and ``scale.parquet``, which turns them into scores.

    Row i belongs to row i of ``tokens.parquet``. Read them with :func:`read_rows`.
    """
    rows = [s.rows.producer() if convention == "producer" else s.rows for s in samples]
    arrays = {
        "projection": probe.grid(np.concatenate([r.projection for r in rows])),
        "norm": np.concatenate([r.norm for r in rows]).reshape(-1, len(probe.layers), len(probe.sites)),
    }
    names = {
        "traits": ",".join(probe.traits),
        "layers": ",".join(map(str, probe.layers)),
        "sites": ",".join(probe.sites),
        "convention": convention,
        "read": "after the side's own edits",
    }
    save_file({k: np.ascontiguousarray(v, np.float32) for k, v in arrays.items()}, folder / ROWS, metadata=names)
    scale.table(probe).to_parquet(folder / SCALE)


@dataclass(frozen=True)
class CapturedRows(Grid):
    """The rows of a capture as they were written; the last axes are ``layers``, ``sites`` and ``traits``."""

    projection: np.ndarray
    norm: np.ndarray
    scale: Scale
    convention: str

    @property
    def cosine(self) -> np.ndarray:
        """``[row, layer, site, trait]``: the projection as a share of |h|."""
        return self.projection / self.norm[..., None]

    @property
    def centred(self) -> np.ndarray:
        """``[row, layer, site, trait]``: less the mean over the base's response tokens."""
        return self.projection - self.scale.mean

    @property
    def score(self) -> np.ndarray:
        """``[row, layer, site, trait]``: centred, in standard deviations of directions that mean nothing."""
        return self.scale.score(self.projection)


def read_rows(folder: Path) -> CapturedRows:
    """The rows of ``outputs/<experiment>/capture/data``.

    Raises:
        DriftbookError: no readable ``projections.safetensors`` and ``scale.parquet`` there.
    """
    try:
        with safe_open(folder / ROWS, "np") as held:
            head = held.metadata()
            projection, norm = held.get_tensor("projection"), held.get_tensor("norm")
        layers = [int(layer) for layer in head["layers"].split(",")]
        grid = Grid(layers, head["sites"].split(","), head["traits"].split(","))
        scale = Scale.from_table(pd.read_parquet(folder / SCALE), grid)
    except (OSError, KeyError, ValueError) as error:
        raise DriftbookError(f"{folder / ROWS}: cannot be read ({error}); run the capture stage again") from error
    return CapturedRows(grid.layers, grid.sites, grid.traits, projection, norm, scale, head["convention"])
