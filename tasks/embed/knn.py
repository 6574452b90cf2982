"""The exact k-nearest-neighbour graph, near the speed of the matrix product that it needs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from winnow.tasks import hardware
from winnow.tasks.embed.candidates import Candidates
from winnow.tasks.embed.graph import Graph
from winnow.tasks.embed.space import Space, error_bound, half_squares, prepare
from winnow.tasks.errors import BadInput

if TYPE_CHECKING:
    from winnow.tasks.progress import Callback

__all__ = ["Graph", "knn"]

Task = TypeVar("Task")

_SPARE = 8  # candidates kept beyond k, so that rounding rarely decides which are among them


def knn(
    features: np.ndarray,
    k: int,
    *,
    metric: str = "cosine",
    queries: np.ndarray | None = None,
    device: torch.device | None = None,
    progress: Callback | None = None,
) -> Graph:
    """Exact k nearest neighbours of every sample, except the sample itself; ties go to the lower index.

    s_ij = ⟨x_i, x_j⟩ / (max(‖x_i‖, 1e-12) · max(‖x_j‖, 1e-12)), or s_ij = −‖x_i − x_j‖ for
    ``metric="euclidean"``; row i lists the k largest s_ij, j ≠ i.

    How: the features are shuffled by a fixed permutation and multiplied tile by tile in float32; each tile is
    computed once and serves both its rows and its columns. A candidate passes if it beats its row's running
    bound (one comparison per element), so that only about k·log₂(N/k) candidates per row are ever handled one
    by one. What remains is measured again by one dot product per pair in a fixed order, and ranked by
    (similarity, index): the result depends neither on the tiles nor on the number of threads. Rows in which a
    rounding error could have excluded a true neighbour are searched again in float64; hence the result is
    exact with respect to those float32 similarities. Memory: one float32 copy of the features, O(N·k)
    candidates, a tile per thread; never N×N.

    Args:
        features: (N, D) float16, float32 or any real dtype.
        k: neighbours per sample, at most N − 1 (N with ``queries``).
        metric: "cosine" or "euclidean".
        queries: (Q, D); list their neighbours among the features instead, with nothing left out.
        device: where to compute; None takes the first GPU, else the CPU.
        progress: called with (rows done, rows, note).

    Returns:
        Graph with neighbours (N, k) int32 and similarity (N, k) float32, descending; Q rows if there are
        queries.

    Raises:
        BadInput: k out of range, features that are not a matrix of numbers, or a NaN or infinite row.

    >>> graph = knn(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), 2)
    >>> graph.neighbours.tolist()
    [[1, 3], [0, 3], [3, 0], [0, 1]]
    >>> graph.similarity[0].round(4)
    array([1.    , 0.7071], dtype=float32)

    References:
        Adaloglou et al., "Exploring the limits of deep image clustering using pretrained models", BMVC 2023,
        section 3 (the kNN of TEMI); HHU-MMBS/TEMI-official-BMVC2023 gen_embeds.py, compute_neighbors. Error
        bound of a dot product: Higham and Mary, "A new approach to probabilistic rounding error analysis",
        SIAM J. Sci. Comput. 41(5), 2019, theorem 3.1.

    Differences from upstream:
        Above 80,000 samples the published code leaves out the unrelated sample i mod 64 instead of sample i
        itself; :func:`winnow.tasks.embed.upstream.knn.knn` replays that. Zero vectors have cosine 0 with
        everything (published: NaN, ranked first). Ties go to the lower index (published: any order).
    """
    if queries is None:
        return neighbours_except(None, features, k, metric=metric, device=device, progress=progress)
    features, queries = _matrix("features", features), _matrix("queries", queries)
    if queries.shape[1] != features.shape[1]:
        raise BadInput(f"queries have {queries.shape[1]} columns, features have {features.shape[1]}.")
    space = _space(features, k, len(features), metric, device)
    return _search(space, int(k), _blocks_of(queries, space), len(queries), progress)


def neighbours_except(
    left_out: np.ndarray | None,
    features: np.ndarray,
    k: int,
    *,
    metric: str = "cosine",
    device: torch.device | None = None,
    progress: Callback | None = None,
) -> Graph:
    """The graph of :func:`knn` in which row i does not list sample ``left_out[i]``, int64 (N,); None: i."""
    features = _matrix("features", features)
    left_out = np.arange(len(features)) if left_out is None else left_out
    space = _space(features, k, len(features) - 1, metric, device)
    return _search_all(space, int(k), left_out, progress)


def _matrix(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or values.shape[1] == 0 or values.dtype.kind not in "fiub":
        raise BadInput(
            f"{name} must be a matrix of numbers (rows, dimensions), got {values.dtype} of shape "
            f"{values.shape}."
        )
    if values.shape[0] == 0:
        raise BadInput(f"{name} has no rows.")
    if values.dtype.kind == "f":
        for start in range(0, len(values), 8192):
            bad = ~np.isfinite(values[start : start + 8192]).all(axis=1)
            if bad.any():
                raise BadInput(
                    f"{name} row {start + int(bad.argmax())} holds NaN or infinity.",
                    remedy="drop or mend that row",
                )
    return values


def _space(features: np.ndarray, k: int, most: int, metric: str, device: torch.device | None) -> Space:
    if metric not in ("cosine", "euclidean"):
        raise BadInput(f"metric={metric!r} is neither 'cosine' nor 'euclidean'.")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= most:
        raise BadInput(
            f"k={k!r}, but {len(features)} samples have 1 to {max(most, 0)} neighbours each.",
            remedy=f"pass 1 <= k <= {max(most, 0)}",
        )
    where = hardware.device() if device is None else device
    if where.type == "cuda":
        hardware.full_precision()  # the error bounds are those of float32
    return Space.build(features, int(k), metric, where)


@dataclass(frozen=True)
class _Block:
    """Query rows searched together.

    Attributes:
        rows: (n, D) float32, prepared.
        bias: (n,) float32, −‖x‖²/2; None for cosines.
        left_out: (n, 1) int64, the point that each row must not list; −1 for none.
        target: (n,) int64, rows of the graph.
    """

    rows: torch.Tensor
    bias: torch.Tensor | None
    left_out: torch.Tensor
    target: np.ndarray


def _blocks_of(queries: np.ndarray, space: Space) -> Iterator[_Block]:
    for start in range(0, len(queries), space.tile):
        target = np.arange(start, min(start + space.tile, len(queries)))
        rows = torch.from_numpy(prepare(queries[target], space.metric, space.scale)).to(space.points.device)
        bias = None if space.bias is None else half_squares(rows)
        yield _Block(rows, bias, torch.full((len(rows), 1), -1, device=rows.device), target)


class _Buffers(threading.local):
    """Each thread's tile of scores and mask."""

    def __init__(self, space: Space) -> None:
        side = space.tile**2
        self.tile = torch.empty(side, device=space.points.device)
        self.mask = torch.empty(side, dtype=torch.bool, device=space.points.device)


def _run(
    work: Callable[[Task], int],
    tasks: Iterator[Task],
    total: int,
    where: torch.device,
    progress: Callback | None,
) -> None:
    """Work through tasks; on a CPU in parallel, one core each, as many at once as torch has threads.

    The results of ``work`` add up to ``total``.
    """
    done = 0

    def report(amount: int) -> None:
        nonlocal done
        done += amount
        if progress and amount:
            progress(done, total, "nearest neighbours")

    threads = torch.get_num_threads()
    if where.type != "cpu" or threads == 1:
        for task in tasks:
            report(work(task))
        return
    import faiss

    with hardware.core_pool(threads, set_threads=(faiss.omp_set_num_threads,)) as pool:
        running: set[Future[int]] = {pool.submit(work, task) for task in islice(tasks, 2 * threads)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                report(future.result())
            running |= {pool.submit(work, task) for task in islice(tasks, len(finished))}


def _search(
    space: Space,
    k: int,
    blocks: Iterator[_Block],
    total: int,
    progress: Callback | None,
    into: Graph | None = None,
) -> Graph:
    """Neighbours of blocks of queries among the points: every tile serves its rows."""
    graph = into or _empty(total, k)
    tiles, buffers = space.tiles, _Buffers(space)

    def work(block: _Block) -> int:
        best = Candidates(len(block.rows), k + 1 + _SPARE, space.points.device)
        for columns in tiles:
            scores = space.scores(block.rows, block.bias, columns, buffers.tile)
            best.offer(scores, columns.start, buffers.mask)
        _finish(space, k, block, best, graph)
        return len(block.rows)

    _run(work, blocks, total, space.points.device, progress)
    return graph


def _search_all(space: Space, k: int, left_out: np.ndarray, progress: Callback | None) -> Graph:
    """Neighbours of the points among themselves.

    The score is symmetric, so a tile above the diagonal also serves its columns.
    """
    n = len(space.order)
    graph = _empty(n, k)
    where = space.points.device
    position = np.full(n, -1)
    position[space.order[: space.size]] = np.arange(space.size)
    without = torch.from_numpy(position[left_out[space.order]])[:, None].to(where)

    def block_of(rows: slice) -> _Block:
        bias = None if space.bias is None else space.bias[rows]
        return _Block(space.points[rows], bias, without[rows], space.order[rows])

    tiles, buffers = space.tiles, _Buffers(space)
    best = {i: Candidates(rows.stop - rows.start, k + 1 + _SPARE, where) for i, rows in enumerate(tiles)}
    missing = [len(tiles)] * len(tiles)  # tiles of scores that a block still waits for
    lock = threading.Lock()

    def work(pair: tuple[int, int]) -> int:
        i, j = pair
        block = block_of(tiles[i])
        scores = space.scores(block.rows, block.bias, tiles[j], buffers.tile)
        best[i].offer(scores, tiles[j].start, buffers.mask)
        if i != j:
            best[j].offer(scores.T, tiles[i].start, buffers.mask)
        complete = []
        with lock:
            for part in {i, j}:
                missing[part] -= 1
                if missing[part] == 0:
                    complete.append(part)
        for part in complete:
            _finish(space, k, block_of(tiles[part]), best.pop(part), graph)
        return sum(tiles[part].stop - tiles[part].start for part in complete)

    pairs = ((i, j) for i in range(len(tiles)) for j in range(i, len(tiles)))
    _run(work, pairs, space.size, where, progress)
    if space.size < n:  # the duplicates that no row lists still have neighbours
        rest = (slice(start, min(start + space.tile, n)) for start in range(space.size, n, space.tile))
        _search(space, k, map(block_of, rest), n, None, into=graph)
    return graph


def _empty(n: int, k: int) -> Graph:
    return Graph(np.empty((n, k), np.int32), np.empty((n, k), np.float32))


def _finish(space: Space, k: int, block: _Block, best: Candidates, graph: Graph) -> None:
    """Measure the candidates, rank them and write the best into the graph.

    Rows whose bound does not exclude all other points are searched again.
    """
    best.merge()
    ids = best.ids.long()
    ids = ids.masked_fill(ids == block.left_out, -1)
    similarity = space.measure(block.rows, ids)
    n = len(space.order)
    original = space.device_order[ids.clamp_min(0)].masked_fill(ids < 0, n)
    # by index first, then stably by similarity: ties go to the lower index
    original, by_index = original.sort(dim=1)
    similarity, by_score = similarity.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    original = original.gather(1, by_score)
    if similarity.shape[1] < k:
        similarity = torch.nn.functional.pad(similarity, (0, k - similarity.shape[1]), value=-torch.inf)
        original = torch.nn.functional.pad(original, (0, k - original.shape[1]), value=n)
    graph.neighbours[block.target] = original[:, :k].int().cpu().numpy()
    graph.similarity[block.target] = similarity[:, :k].cpu().numpy()
    last = space.score_of(similarity[:, k - 1])
    unsure = (last <= best.bound + space.slack(block.rows)) & torch.isfinite(best.bound) | torch.isinf(last)
    rows = unsure.nonzero().view(-1)
    if len(rows):
        for part in rows.split(max(1, min(256, 2**24 // space.size))):
            _search_again(space, k, part, block, last[part], graph)
    if space.metric == "euclidean":
        graph.similarity[block.target] /= np.float32(space.scale)


def _search_again(
    space: Space, k: int, part: torch.Tensor, block: _Block, floor: torch.Tensor, graph: Graph
) -> None:
    """Measure every point whose float64 score could reach ``floor``, the k-th best score so far.

    Args:
        space, block, graph: as in :func:`_finish`.
        k: neighbours per row.
        part: (n,) int64, rows of the block.
        floor: (n,) float32.
    """
    rows = block.rows[part]
    wide = rows.double()
    floor = floor.double()
    reach = 4.0 * error_bound(rows.shape[1]) * (floor.abs() if space.metric == "euclidean" else 1.0)
    lowest = floor - reach - 1e-12
    entries = []
    for columns in space.tiles:
        right = space.points[columns].double()
        scores = wide @ right.T
        if space.metric == "euclidean":
            scores -= 0.5 * (wide.square().sum(1)[:, None] + right.square().sum(1))
        at = (scores >= lowest[:, None]).nonzero()
        at[:, 1] += columns.start
        entries.append(at)
    row, ids = torch.cat(entries).unbind(1)
    kept = ids != block.left_out[part, 0][row]
    row, ids = row[kept], ids[kept]
    pairs = zip(row.split(2**16), ids.split(2**16), strict=True)
    similarity = torch.cat([space.measure(rows[r], i[:, None]) for r, i in pairs])
    owner, value = row.cpu().numpy(), similarity[:, 0].cpu().numpy()
    original = space.order[ids.cpu().numpy()]
    ranked = np.lexsort((original, -value, owner))
    counts = np.bincount(owner, minlength=len(part))
    chosen = ranked[(counts.cumsum() - counts)[:, None] + np.arange(k)]
    target = block.target[part.cpu().numpy()]
    graph.neighbours[target] = original[chosen]
    graph.similarity[target] = value[chosen]
