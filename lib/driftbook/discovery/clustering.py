"""Clusters of embedded texts that do not depend on the order of the rows, and how far they can be trusted.

Arrays in, arrays out: ``X`` is float32 ``[n, d]``, one row a text of either side. Labels are int32, -1 is noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from driftbook.errors import DriftbookError

METHODS = ("minibatch_kmeans", "kmeans", "spherical_kmeans", "evoc", "hdbscan", "per_prompt", "family")
DENSITY = ("evoc", "hdbscan")
GIVEN = ("per_prompt", "family")

ROWS_PER_BLOCK = 4096
LLOYD_ITERATIONS = 100
INIT_ROWS = 3072  # rows that k-means++ looks at: what sklearn's MiniBatchKMeans takes too


@dataclass(frozen=True)
class Centres:
    """What assignment and incremental update need, and nothing that grows with the number of rows.

    ``position`` float32 ``[k, d]``; ``origin`` where they stood at the last fit; ``counts`` rows each stands for;
    ``radius`` mean distance of its rows at the fit, ``far`` that mean plus two standard deviations.
    ``outside_at_fit`` is the share of the fitted rows beyond ``far``; ``fitted``, ``added`` and ``outside`` count
    rows at the fit, since it, and of those beyond ``far``.
    """

    position: np.ndarray
    origin: np.ndarray
    counts: np.ndarray
    radius: np.ndarray
    far: np.ndarray
    outside_at_fit: float
    fitted: int
    added: int = 0
    outside: int = 0


@dataclass(frozen=True)
class Clustering:
    """``labels`` int32 ``[n]``, largest cluster first; ``centres`` float32 ``[k, d]``; ``distance`` to the own centre.

    ``margin`` is the distance to the nearest other centre minus the distance to the own one (negative where a density
    method keeps a row with a centre that is not its nearest). A noise row has the distance to the nearest centre and
    margin NaN. ``choice`` lists the (k, silhouette) pairs behind ``clusters: auto``.
    """

    labels: np.ndarray
    centres: np.ndarray
    distance: np.ndarray
    margin: np.ndarray
    method: str
    seed: int
    state: Centres
    choice: tuple[tuple[int, float], ...] = ()

    @property
    def k(self) -> int:
        return len(self.centres)

    @property
    def noise_share(self) -> float:
        return float((self.labels < 0).mean()) if len(self.labels) else 0.0


# ----------------------------------------------------------------------------------------------------------- row order


def row_keys(X: np.ndarray) -> np.ndarray:
    """uint64 ``[n]``: a hash of the content of each row, by multiplication with fixed odd numbers."""
    X = np.ascontiguousarray(X, dtype=np.float32)
    words = X.view(np.uint32 if X.shape[1] % 2 else np.uint64)
    factors = np.random.default_rng(0x5EED).integers(1, 2**63, words.shape[1], dtype=np.uint64) | np.uint64(1)
    keys = np.empty(len(X), dtype=np.uint64)
    for start in range(0, len(X), ROWS_PER_BLOCK):
        part = slice(start, start + ROWS_PER_BLOCK)
        keys[part] = (words[part] * factors).sum(axis=1)
    return keys


def content_order(X: np.ndarray, keys: Sequence | np.ndarray | None = None) -> np.ndarray:
    """The permutation that sorts rows by content hash: ``keys`` (one a row, from its text), or a hash of the row."""
    if keys is None:
        return np.argsort(row_keys(X), kind="stable")
    if len(keys) != len(X):
        raise ValueError(f"{len(keys)} keys for {len(X)} rows")
    # one text can have two rows, where its prompt has a part in them
    return np.lexsort((row_keys(X), np.asarray(keys)))


# ----------------------------------------------------------------------------------------------------------------- fit


def fit(
    method: str,
    X: np.ndarray,
    k: int | str = 40,
    seed: int = 0,
    *,
    keys: Sequence | np.ndarray | None = None,
    groups: Sequence[str] | None = None,
    min_cluster_size: int = 20,
    warm_start: np.ndarray | None = None,
) -> Clustering:
    """Cluster the rows of ``X``; permuted rows give permuted labels and nothing else.

    ``k``: number of clusters, or ``"auto"`` (see ``choose_k``). EVoC takes it as the approximate number it should
    look for, and with ``auto`` keeps its most persistent layer; HDBSCAN finds its own. ``groups`` names the group of
    each row for ``per_prompt`` and ``family``. ``warm_start``: centres ``[k, d]`` to begin from (mini-batch, plain
    and spherical k-means). Raises DriftbookError when there are fewer distinct rows than clusters.
    """
    if method not in METHODS:
        raise DriftbookError(f"cluster.method {method!r} is not known; choose one of {', '.join(METHODS)}")
    X = np.ascontiguousarray(X, dtype=np.float32)
    if X.ndim != 2 or len(X) < 2:
        raise DriftbookError(f"clustering needs two texts or more and got {len(X)}: raise decode.sampling.max_texts")
    if not np.isfinite(X).all():
        raise DriftbookError("the embeddings hold NaN or infinity: delete the embedding cache and embed again")
    if method in GIVEN:
        if groups is None or len(groups) != len(X):
            raise ValueError(f"{method} needs groups, one name per row")
        labels = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
        return _described(X, labels.astype(np.int32), None, method, seed, order=np.arange(len(X)))

    order = content_order(X, keys)
    ordered = X[order]
    choice: tuple[tuple[int, float], ...] = ()
    if method not in DENSITY:
        if k == "auto":
            k, choice = choose_k(ordered, seed, largest=len(X) // min_cluster_size)
        k = len(warm_start) if warm_start is not None else int(k)
        # identical texts have identical rows: k-means cannot part them
        if k > len(X) or (k > len(X) // 50 and k > len(np.unique(row_keys(ordered)))):
            raise DriftbookError(
                f"cluster.clusters is {k}, and there are only {len(np.unique(row_keys(ordered)))} distinct texts: "
                "lower it, use clusters: auto, or decode more texts"
            )
    labels, centres = _run(method, ordered, k, seed, min_cluster_size, warm_start)
    return replace(_described(ordered, labels, centres, method, seed, order), choice=choice)


def _run(
    method: str, X: np.ndarray, k: int | str, seed: int, min_cluster_size: int, warm_start: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(labels, None) from a density method, (None, centres) from a k-means."""
    if method == "minibatch_kmeans":
        from sklearn.cluster import MiniBatchKMeans  # two seconds

        # labels come from one assignment of every row to the final centres, so sklearn need not make its own
        model = MiniBatchKMeans(
            n_clusters=int(k),
            random_state=seed,
            compute_labels=False,
            init="k-means++" if warm_start is None else np.asarray(warm_start, dtype=np.float32),
            n_init=1,
        )
        return None, model.fit(X).cluster_centers_.astype(np.float32)
    if method in ("kmeans", "spherical_kmeans"):
        spherical = method == "spherical_kmeans"
        rows = _unit(X) if spherical else X
        weights = np.ones((1, len(X)), dtype=np.float32)
        start = warm_start[None] if warm_start is not None else plus_plus(rows, weights, int(k), seed)
        centres, _ = lloyd(rows, weights, start, LLOYD_ITERATIONS, spherical=spherical)
        return None, centres[0]
    if method == "evoc":
        import evoc  # compiles for seconds

        model = evoc.EVoC(
            base_min_cluster_size=min_cluster_size,
            approx_n_clusters=None if k == "auto" else int(k),
            random_state=seed,
        )
        return np.asarray(model.fit_predict(X), dtype=np.int32), None
    import fast_hdbscan  # compiles for seconds

    model = fast_hdbscan.HDBSCAN(min_cluster_size=min_cluster_size, reproducible=True)
    return np.asarray(model.fit_predict(X), dtype=np.int32), None


def _described(
    X: np.ndarray, labels: np.ndarray | None, centres: np.ndarray | None, method: str, seed: int, order: np.ndarray
) -> Clustering:
    """Rows back in the caller's order, clusters from the largest to the smallest, empty ones gone."""
    spherical = method == "spherical_kmeans"
    if labels is None:
        labels, distance, margin = assign(X, centres, spherical=spherical)
        centres, labels = _largest_first(labels, centres)
    else:
        _, labels = _largest_first(labels, None)
        centres = _means(X, labels)
        distance, margin = _own_distance(X, labels, centres)
    state = _state(centres, labels, distance)
    back = [np.empty_like(column) for column in (labels, distance, margin)]
    for out, column in zip(back, (labels, distance, margin), strict=True):
        out[order] = column
    return Clustering(back[0], centres, back[1], back[2], method, seed, state)


def _largest_first(labels: np.ndarray, centres: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray]:
    """Renumber by size, equal sizes by the first row of each in content order."""
    found, first, counts = np.unique(labels, return_index=True, return_counts=True)
    kept = found >= 0
    found, first, counts = found[kept], first[kept], counts[kept]
    ranked = found[np.lexsort((first, -counts))]
    rename = np.full(int(labels.max(initial=-1)) + 2, -1, dtype=np.int32)
    rename[ranked] = np.arange(len(ranked), dtype=np.int32)
    return (None if centres is None else centres[ranked]), rename[labels]


def _state(centres: np.ndarray, labels: np.ndarray, distance: np.ndarray) -> Centres:
    kept = labels >= 0
    counts = np.bincount(labels[kept], minlength=len(centres))
    total = np.maximum(counts, 1)
    radius = np.bincount(labels[kept], distance[kept], minlength=len(centres)) / total
    square = np.bincount(labels[kept], distance[kept] ** 2, minlength=len(centres)) / total
    far = radius + 2 * np.sqrt(np.maximum(square - radius**2, 0))
    outside = float((distance[kept] > far[labels[kept]]).mean()) if kept.any() else 0.0
    return Centres(centres, centres, counts, radius, far, outside, fitted=len(labels))


# ---------------------------------------------------------------------------------------------------------- assignment


def _unit(X: np.ndarray) -> np.ndarray:
    return X / np.maximum(np.linalg.norm(X, axis=-1, keepdims=True), 1e-12)


def assign(X: np.ndarray, centres: np.ndarray, *, spherical: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(labels int32, distance, margin) ``[n]`` to the nearest centre. ``spherical``: chords between directions."""
    if spherical:
        centres = _unit(centres)
    square = (centres.astype(np.float64) ** 2).sum(axis=1).astype(np.float32)
    labels = np.empty(len(X), dtype=np.int32)
    near = np.empty(len(X), dtype=np.float32)
    next_near = np.full(len(X), np.inf, dtype=np.float32)
    for start in range(0, len(X), ROWS_PER_BLOCK):
        block = X[start : start + ROWS_PER_BLOCK]
        block = _unit(block) if spherical else block
        scores = square - 2 * (block @ centres.T)
        rows = np.arange(len(block))
        best = scores.argmin(axis=1)
        length = np.einsum("ij,ij->i", block, block)
        part = slice(start, start + len(block))
        labels[part] = best
        near[part] = scores[rows, best] + length
        if len(centres) > 1:
            scores[rows, best] = np.inf
            next_near[part] = scores.min(axis=1) + length
    near = np.sqrt(np.maximum(near, 0))
    return labels, near, np.sqrt(np.maximum(next_near, 0)) - near


def _means(X: np.ndarray, labels: np.ndarray) -> np.ndarray:
    kept = np.flatnonzero(labels >= 0)
    k = int(labels.max(initial=-1)) + 1
    onehot = sparse.csr_matrix(
        (np.ones(len(kept), dtype=np.float32), (labels[kept], kept)), shape=(k, len(X)), dtype=np.float32
    )
    return np.asarray(onehot @ X) / np.maximum(np.bincount(labels[kept], minlength=k), 1)[:, None].astype(np.float32)


def _own_distance(X: np.ndarray, labels: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distance, margin) where the label is given and its centre need not be the nearest."""
    if not len(centres):
        return np.full(len(X), np.nan, dtype=np.float32), np.full(len(X), np.nan, dtype=np.float32)
    nearest, distance, margin = assign(X, centres)
    other = (labels >= 0) & (labels != nearest)
    own = np.linalg.norm(X[other] - centres[labels[other]], axis=1)
    margin[other] = distance[other] - own
    distance[other] = own
    margin[labels < 0] = np.nan
    return distance, margin


# ------------------------------------------------------------------------------------------------------------- k-means


def plus_plus(X: np.ndarray, weights: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Greedy k-means++ for ``B`` weightings of the same rows at once: ``weights`` ``[B, n]`` to centres ``[B, k, d]``.

    Arthur and Vassilvitskii 2007, with sklearn's 2 + log(k) candidates a step. It looks at no more than ``max(3072,
    3k)`` rows drawn at random, whose distances to each other are computed once and serve every weighting.
    """
    rng = np.random.default_rng(seed)
    rows = min(len(X), max(INIT_ROWS, 3 * k))
    chosen = np.sort(rng.permutation(len(X))[:rows])
    points, w = X[chosen], weights[:, chosen].astype(np.float64)
    length = np.einsum("ij,ij->i", points, points)
    square = np.maximum(length[:, None] + length[None] - 2 * points @ points.T, 0)
    np.fill_diagonal(square, 0)
    several = len(w)
    each = np.arange(several)
    candidates = 2 + int(np.log(k))
    picked = np.empty((several, k), dtype=np.int64)
    picked[:, 0] = _draw(w, rng, 1)[:, 0]
    closest = square[picked[:, 0]].astype(np.float64)
    for step in range(1, k):
        potential = w * closest
        # every distinct point taken: the rest of the centres coincide with points and come out empty
        potential[potential.sum(axis=1) <= 0] += w[potential.sum(axis=1) <= 0]
        tried = _draw(potential, rng, candidates)
        nearer = np.minimum(closest[:, None], square[tried])
        best = np.einsum("bi,bti->bt", w, nearer).argmin(axis=1)
        picked[:, step] = tried[each, best]
        closest = nearer[each, best]
    return points[picked]


def _draw(weight: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Indices ``[B, count]`` drawn with probability proportional to the rows of ``weight``."""
    cumulated = weight.cumsum(axis=1)
    draws = rng.random((len(weight), count)) * cumulated[:, -1:]
    found = [np.searchsorted(c, d, side="right") for c, d in zip(cumulated, draws, strict=True)]
    return np.minimum(np.stack(found), weight.shape[1] - 1)


def lloyd(
    X: np.ndarray,
    weights: np.ndarray,
    centres: np.ndarray,
    iterations: int,
    *,
    spherical: bool = False,
    tolerance: float = 1e-4,
    settled: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """k-means for ``B`` weightings of the same rows at once: centres ``[B, k, d]`` -> (centres, labels ``[B, n]``).

    ``weights`` ``[B, n]``; a row of weight 0 is labelled and moves no centre. Stops when no centre of any weighting
    moves by more than ``tolerance`` of the variance (sklearn's rule), when no more than the share ``settled`` of the
    labels changed, or after ``iterations``. Sums are made by one thread in row order, so the result is the same however
    many cores there are.
    """
    several, k, width = centres.shape
    moved_enough = tolerance * float(X.var(axis=0).mean())
    centres = centres.astype(np.float32)
    offsets = (np.arange(several) * k)[:, None]
    before = None
    for _ in range(iterations):
        labels = _nearest(X, centres)
        if before is not None and (labels != before).mean() <= settled:
            return centres, labels
        before = labels
        # column i of the matrix holds, for every weighting, the centre of row i
        matrix = sparse.csc_matrix(
            (weights.T.ravel(), (labels + offsets).T.ravel(), np.arange(0, labels.size + 1, several)),
            shape=(several * k, len(X)),
        )
        mass = np.asarray(matrix.sum(axis=1)).ravel()
        sums = np.asarray(matrix @ X)
        moved = centres.reshape(-1, width).copy()  # an empty centre stays where it is
        full = mass > 0
        moved[full] = sums[full] / mass[full, None]
        if spherical:
            moved = _unit(moved)
        moved = moved.reshape(centres.shape)
        shift = ((moved - centres) ** 2).sum(axis=(1, 2)).max()
        centres = moved
        if shift <= moved_enough:
            break
    return centres, _nearest(X, centres)


def _nearest(X: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Label of each row under each of ``B`` sets of centres, int32 ``[B, n]``."""
    several, k, width = centres.shape
    flat = centres.reshape(-1, width)
    square, minus_two = np.einsum("ij,ij->i", flat, flat), -2 * flat
    labels = np.empty((several, len(X)), dtype=np.int32)
    rows = max(256, min(ROWS_PER_BLOCK, 4_000_000 // len(flat)))
    for start in range(0, len(X), rows):
        block = X[start : start + rows]
        scores = block @ minus_two.T
        scores += square
        labels[:, start : start + rows] = scores.reshape(len(block), several, k).argmin(axis=2).T
    return labels


def choose_k(X: np.ndarray, seed: int, largest: int, sample: int = 4000) -> tuple[int, tuple[tuple[int, float], ...]]:
    """The number of clusters with the best mean silhouette over a grid (4, 6, 8, 12, 16, ... up to ``largest``).

    k-means is fitted, and its silhouette taken, on at most ``sample`` rows; of two equal scores the smaller k wins.
    Returns (k, ((k, silhouette), ...)). The rows must be in content order.
    """
    from sklearn.metrics import silhouette_score  # two seconds

    rows = X[np.sort(np.random.default_rng(seed).permutation(len(X))[:sample])]
    distinct = len(np.unique(row_keys(rows)))
    largest = min(largest, distinct - 1)
    grid = [k for power in range(2, 12) for k in (2**power, 3 * 2 ** (power - 1)) if k <= largest] or [max(2, largest)]
    if distinct < 3:
        raise DriftbookError(
            f"clusters: auto needs three distinct texts and got {distinct}: raise decode.sampling.max_texts"
        )
    scores = []
    weights = np.ones((1, len(rows)), dtype=np.float32)
    for k in grid:
        _, labels = lloyd(rows, weights, plus_plus(rows, weights, k, seed), 20)
        taken = np.sort(np.random.default_rng(seed).permutation(len(rows))[:2000])
        scores.append(float(silhouette_score(rows[taken], labels[0][taken])))
    return grid[int(np.argmax(scores))], tuple(zip(grid, scores, strict=True))


# ----------------------------------------------------------------------------------------------------------- stability


@dataclass(frozen=True)
class Stability:
    """``jaccard`` ``[k]``: mean over bootstraps of the best overlap of a cluster with a new one (NaN: never drawn).

    ``low`` and ``high`` ``[k]`` hold the middle 90% of the bootstraps. ``ari`` ``[bootstraps]``: agreement of the whole
    clustering. ``rows``: how many rows took part.
    """

    jaccard: np.ndarray
    low: np.ndarray
    high: np.ndarray
    ari: np.ndarray
    rows: int
    bootstraps: int


def stability(
    X: np.ndarray,
    clustering: Clustering,
    *,
    prompts: Sequence[str] | None = None,
    keys: Sequence | np.ndarray | None = None,
    bootstraps: int = 20,
    seed: int = 0,
    min_cluster_size: int = 20,
    rows: int | None = None,
) -> Stability:
    """How well the clusters come back when the prompts are drawn anew (Hennig 2007, cluster-wise Jaccard).

    Prompts (rows, where ``prompts`` is not given) are drawn with replacement, clustered from a fresh start, and every
    original cluster is compared on the drawn rows with the most similar new one. A mean Jaccard under 0.5 means a
    dissolved cluster, under 0.6 one not to be trusted, from 0.75 on a stable one.

    At most ``rows`` rows take part (40 a cluster, 4,000 to 20,000), as whole prompts, so the cost does not grow with
    n; a clustering of fewer rows is less stable, so the figure is a lower bound for a larger set. k-means methods
    share the rows' distances and run all bootstraps as one matrix product: greedy k-means++, then Lloyd until under
    0.5% of the labels change. Density methods are run on the distinct rows of each draw, because a copied row would be
    a dense spot of its own. Groupings that were given, not found, are stable by definition.
    """
    if clustering.method in GIVEN:
        ones = np.ones(clustering.k)
        return Stability(ones, ones, ones, np.ones(bootstraps), len(X), bootstraps)
    k = clustering.k
    rows = rows or int(np.clip(40 * k, 4000, 20_000))
    rng = np.random.default_rng([seed, 0xB007])
    chosen, unit = whole_prompts(content_order(X, keys), prompts, rows, rng)
    points, reference = X[chosen], clustering.labels[chosen]
    drawn = rng.multinomial(unit.max() + 1, np.full(unit.max() + 1, 1 / (unit.max() + 1)), size=bootstraps)
    weights = drawn[:, unit].astype(np.float32)
    if clustering.method in DENSITY:
        found = np.full((bootstraps, len(points)), -1, dtype=np.int32)
        for b in range(bootstraps):
            kept = weights[b] > 0
            wanted = k if clustering.method == "evoc" and k else "auto"
            found[b, kept] = _run(clustering.method, points[kept], wanted, seed + b, min_cluster_size, None)[0]
    else:
        spherical = clustering.method == "spherical_kmeans"
        points = _unit(points) if spherical else points
        k = min(k, len(points))
        _, found = lloyd(points, weights, plus_plus(points, weights, k, seed), 12, spherical=spherical, settled=0.005)
    return compare_draws(reference, found, weights > 0, clustering.k)


def whole_prompts(
    order: np.ndarray, prompts: Sequence[str] | None, rows: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(row indices in content order, prompt number of each) of randomly chosen whole prompts, about ``rows`` rows."""
    if prompts is None:
        chosen = order[np.sort(rng.permutation(len(order))[:rows])]
        return chosen, np.arange(len(chosen))
    _, unit = np.unique(np.asarray(prompts, dtype=str), return_inverse=True)
    size = np.bincount(unit)
    shuffled = rng.permutation(len(size))
    taken = shuffled[: max(2, int(np.searchsorted(size[shuffled].cumsum(), rows, side="right")))]
    chosen = order[np.isin(unit[order], taken)]
    return chosen, np.unique(unit[chosen], return_inverse=True)[1]


def compare_draws(reference: np.ndarray, found: np.ndarray, drawn: np.ndarray, k: int) -> Stability:
    """Jaccard per reference cluster and ARI, on the drawn rows of each of ``B`` clusterings ``found`` ``[B, n]``."""
    from sklearn.metrics import adjusted_rand_score  # two seconds

    jaccard = np.full((len(found), k), np.nan)
    ari = np.empty(len(found))
    for b, (labels, kept) in enumerate(zip(found, drawn, strict=True)):
        ours, theirs = reference[kept], labels[kept]
        ari[b] = adjusted_rand_score(ours, theirs)
        table = contingency(ours, theirs, k)
        union = np.bincount(ours[ours >= 0], minlength=k)[:, None] + np.bincount(theirs[theirs >= 0], minlength=1)[None]
        present = np.bincount(ours[ours >= 0], minlength=k) > 0
        overlap = table / np.maximum(union - table, 1)
        jaccard[b, present] = overlap.max(axis=1, initial=0)[present]
    mean, low, high = np.full((3, k), np.nan)
    drawn_once = ~np.isnan(jaccard).all(axis=0)
    mean[drawn_once] = np.nanmean(jaccard[:, drawn_once], axis=0)
    low[drawn_once], high[drawn_once] = np.nanquantile(jaccard[:, drawn_once], [0.05, 0.95], axis=0)
    return Stability(mean, low, high, ari, found.shape[1], len(found))


def contingency(a: np.ndarray, b: np.ndarray, k: int | None = None) -> np.ndarray:
    """Counts ``[k_a, k_b]`` of rows by both labels; noise of either is left out."""
    kept = (a >= 0) & (b >= 0)
    rows = k or int(a.max(initial=0)) + 1
    columns = int(b.max(initial=0)) + 1
    return np.bincount(a[kept].astype(np.int64) * columns + b[kept], minlength=rows * columns).reshape(rows, columns)


def structureless(X: np.ndarray, seed: int) -> np.ndarray:
    """Rows like ``X`` (a few thousand at most) without groups: normal with the same mean and covariance, and the length
    of the rows of ``X`` where those have one. Clustered the same way they give the stability of no structure at all.
    """
    rng = np.random.default_rng([seed, 0x0])
    mean = X.mean(axis=0)
    centred = (X - mean).astype(np.float32)
    # X'g / sqrt(n) has the covariance of X, whatever the rank
    mixing = rng.standard_normal((len(X), len(X)), dtype=np.float32) / np.sqrt(len(X))
    drawn = mixing @ centred + mean
    length = np.linalg.norm(X, axis=1)
    return drawn * (length.mean() / np.linalg.norm(drawn, axis=1, keepdims=True)) if length.std() < 1e-3 else drawn


# ------------------------------------------------------------------------------------------------------------- quality


def silhouette(X: np.ndarray, labels: np.ndarray, seed: int = 0, sample: int = 3000) -> tuple[float, np.ndarray]:
    """(mean, per cluster ``[k]``) silhouette on a random sample of rows without noise; NaN where none was drawn."""
    from sklearn.metrics import silhouette_samples  # two seconds

    k = int(labels.max(initial=-1)) + 1
    kept = np.flatnonzero(labels >= 0)
    kept = np.sort(np.random.default_rng(seed).permutation(kept)[:sample])
    groups = labels[kept]
    if len(np.unique(groups)) < 2 or len(np.unique(groups)) >= len(kept):
        return float("nan"), np.full(k, np.nan)
    values = silhouette_samples(X[kept], groups)
    counts = np.bincount(groups, minlength=k)
    with np.errstate(invalid="ignore"):
        per_cluster = np.where(counts > 0, np.bincount(groups, values, minlength=k) / np.maximum(counts, 1), np.nan)
    return float(values.mean()), per_cluster


# -------------------------------------------------------------------------------------------------- incremental update


@dataclass(frozen=True)
class Update:
    """New rows under an existing clustering. ``reason`` says why a refit is due; empty when it is not.

    ``outside`` is the share of the rows since the fit that lie farther out than two standard deviations of their
    cluster (``outside_at_fit`` of the fitted rows did); ``moved`` the farthest that a centre went, in units of its
    cluster's radius.
    """

    labels: np.ndarray
    distance: np.ndarray
    margin: np.ndarray
    state: Centres
    outside: float
    moved: float
    reason: str

    @property
    def refit(self) -> bool:
        return bool(self.reason)


def update(clustering: Clustering, X: np.ndarray, state: Centres | None = None) -> Update:
    """Assign new rows to the clusters and move the centres by running means. The cost is that of the new rows.

    ``state``: that of the last update, when several follow each other. Under a density method rows beyond ``far`` are
    noise. A refit is due when new rows fall outside twice as often as fitted ones did (by more than two standard
    errors), when a centre moved by a quarter of its radius, or when more rows came than were fitted.
    """
    state = state or clustering.state
    X = np.ascontiguousarray(X, dtype=np.float32)
    spherical = clustering.method == "spherical_kmeans"
    labels, distance, margin = assign(X, state.position, spherical=spherical)
    outside = distance > state.far[labels]
    if clustering.method in DENSITY:
        labels = np.where(outside, np.int32(-1), labels)
        margin = np.where(outside, np.float32(np.nan), margin)
    kept = labels >= 0
    new = np.bincount(labels[kept], minlength=len(state.counts))
    means = np.zeros_like(state.position)
    if kept.any():
        found = _means(_unit(X) if spherical else X, labels)
        means[: len(found)] = found
    counts = state.counts + new
    step = (new / np.maximum(counts, 1))[:, None].astype(np.float32)
    position = state.position + step * (means - state.position)
    state = replace(
        state,
        position=_unit(position) if spherical else position,
        counts=counts,
        added=state.added + len(X),
        outside=state.outside + int(outside.sum()),
    )
    share = state.outside / max(state.added, 1)
    expected = max(2 * state.outside_at_fit, 0.01)
    error = np.sqrt(expected * (1 - expected) / max(state.added, 1))
    moved = float((np.linalg.norm(state.position - state.origin, axis=1) / np.maximum(state.radius, 1e-6)).max())
    reason = ""
    if share > expected + 2 * error:
        at_fit = f"{state.outside_at_fit:.0%} at the fit"
        reason = f"{share:.0%} of the new texts lie outside every cluster's usual radius ({at_fit})"
    elif moved > 0.25:
        reason = f"a centre moved by {moved:.2f} of its cluster's radius"
    elif state.added > state.fitted:
        reason = f"{state.added} texts came since a fit on {state.fitted}"
    return Update(labels, distance, margin, state, share, moved, reason)
