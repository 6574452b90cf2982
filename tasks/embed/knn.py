"""The exact k-nearest-neighbour graph, near the speed of the matrix product that it needs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np
import torch

from winnow.tasks import hardware
from winnow.tasks.embed.graph import Graph
from winnow.tasks.errors import BadInput

__all__ = ["UPSTREAM_CHUNK", "UPSTREAM_CHUNK_ABOVE", "Graph", "knn"]

UPSTREAM_CHUNK = 64  # rows of a chunk in the published code, …
UPSTREAM_CHUNK_ABOVE = 80_000  # … which it uses, with its masking fault, for more samples than this

Progress = Callable[[int, int, str], None]
Task = TypeVar("Task")

_SPARE = 8  # candidates kept beyond k, so that rounding rarely decides who is among them
_TILE = {
    "cpu": 1024,
    "cuda": 8192,
}  # rows and columns of a tile: in a core's cache, large enough to fill a GPU
_GROUP = 8  # candidates whose maximum bounds a row's k-th best from below
_UNIT = 2.0**-24  # unit roundoff of float32


def knn(
    features: np.ndarray,
    k: int,
    *,
    metric: str = "cosine",
    queries: np.ndarray | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
    upstream: bool = False,
) -> Graph:
    """Exact k nearest neighbours of every sample, itself left out by its index, ties by the lower index.

    s_ij = ⟨x_i, x_j⟩ / (max(‖x_i‖, 1e-12) · max(‖x_j‖, 1e-12)), or s_ij = −‖x_i − x_j‖ for
    ``metric="euclidean"``; row i lists the k largest s_ij, j ≠ i.

    How: the features are shuffled by a fixed permutation and multiplied tile by tile in float32; each tile is
    computed once and serves its rows and its columns. A candidate passes if it beats its row's running bound
    (one comparison an element), so that only some k·log₂(N/k) candidates of a row are ever looked at one by
    one. What remains is measured again by one dot product a pair in a fixed order, and ranked by (similarity,
    index): the result depends neither on the tiles nor on the number of threads. Rows where a rounding error
    could have kept a true neighbour from the candidates are searched again in float64, hence the result is
    exact with respect to those float32 similarities. Memory: one float32 copy of the features, O(N·k)
    candidates, a tile for each thread; never N×N.

    Args:
        features: (N, D) float16, float32 or any real dtype.
        k: neighbours of a sample, at most N − 1 (N with ``queries``).
        metric: "cosine" or "euclidean".
        queries: (Q, D); list their neighbours among the features instead, nothing left out.
        device: where to compute; None takes the first GPU, else the CPU.
        progress: called with (rows done, rows, note).
        upstream: replay the published code above ``UPSTREAM_CHUNK_ABOVE`` samples.

    Returns:
        Graph with neighbours (N, k) int32 and similarity (N, k) float32, descending; Q rows where queries are
        given.

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
        Above 80,000 samples the published code works on chunks of 64 rows and masks (r, r) of the chunk, not
        of the whole matrix: from row 64 on every sample is its own nearest neighbour, and the unrelated
        sample i mod 64 is lost. ``upstream=True`` replays that. Zero vectors have cosine 0 with everything
        (published: NaN, ranked first). Ties go to the lower index (published: any order).
    """
    if metric not in ("cosine", "euclidean"):
        raise BadInput(f"metric={metric!r} is neither 'cosine' nor 'euclidean'.")
    features = _matrix("features", features)
    asked = None if queries is None else _matrix("queries", queries)
    n = len(features)
    if asked is not None and asked.shape[1] != features.shape[1]:
        raise BadInput(f"queries have {asked.shape[1]} columns, features have {features.shape[1]}.")
    if upstream and asked is not None:
        raise BadInput(
            "upstream=True replays the graph among the features; queries have no published counterpart."
        )
    limit = n if asked is not None else n - 1
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= limit:
        raise BadInput(
            f"k={k!r}, but {n} samples have 1 to {max(limit, 0)} neighbours each.",
            remedy=f"pass 1 <= k <= {max(limit, 0)}",
        )
    k = int(k)

    where = hardware.device() if device is None else device
    with _full_precision(where):
        space = _Space.build(features, k, metric, where)
        if asked is not None:
            return _search(space, k, _blocks_of(asked, space), len(asked), progress)
        chunked = upstream and n > UPSTREAM_CHUNK_ABOVE
        left_out = np.arange(n) % UPSTREAM_CHUNK if chunked else np.arange(n)
        return _search_all(space, k, left_out, progress)


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


@contextmanager
def _full_precision(where: torch.device) -> Iterator[None]:
    """TF32 keeps 10 bits of mantissa, too few for the error bound below: off here, restored afterwards."""
    if where.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@dataclass(frozen=True)
class _Space:
    """The points searched, shuffled and prepared so that a larger product means nearer.

    The score of a pair is the cosine, or −‖x − y‖²/2 = ⟨x, y⟩ − ‖x‖²/2 − ‖y‖²/2.
    """

    metric: str
    points: torch.Tensor  # (M + dropped, D) float32: the searched, then duplicates too many to matter
    bias: torch.Tensor | None  # (M + dropped,) −‖x‖²/2
    order: np.ndarray  # (M + dropped,) row of each point in the features
    size: int  # M
    scale: float  # power of two that brings Euclidean norms below 1
    tile: int

    @classmethod
    def build(cls, features: np.ndarray, k: int, metric: str, where: torch.device) -> _Space:
        n, dim = features.shape
        # Shuffled, a prefix of the points is a fair sample, whatever order (by class, say) the data is stored
        # in.
        order = np.random.default_rng(0).permutation(n)
        position = np.argsort(order)
        scale = 1.0
        if metric == "euclidean":
            scale = _scale(features)
        points = np.empty((n, dim), np.float32)
        words = np.random.default_rng(1).integers(-(2**63), 2**63, dim, dtype=np.int64) | 1
        keys = np.empty(n, np.int64)
        for start in range(0, n, 4096):
            rows = _prepare(features[start : start + 4096], metric, scale)
            keys[start : start + 4096] = (rows.view(np.int32).astype(np.int64) * words).sum(1)
            points[position[start : start + 4096]] = rows
        extra = _surplus(keys, points, position, k)
        if extra.any():
            last = np.argsort(extra[order], kind="stable")
            order, points = order[last], points[last]
        data = torch.from_numpy(points).to(where)
        bias = None
        if metric == "euclidean":
            bias = torch.cat([-0.5 * part.double().square().sum(1) for part in data.split(4096)]).float()
        return cls(
            metric, data, bias, order, n - int(extra.sum()), scale, _TILE.get(where.type, _TILE["cuda"])
        )

    def scores(
        self, left: torch.Tensor, left_bias: torch.Tensor | None, columns: slice, out: torch.Tensor
    ) -> torch.Tensor:
        right = self.points[columns]
        tile = out[: len(left) * len(right)].view(len(left), len(right))
        if self.bias is None or left_bias is None:
            return torch.mm(left, right.T, out=tile)
        torch.add(left_bias[:, None], self.bias[columns], out=tile)
        return tile.addmm_(left, right.T)

    def slack(self, rows: torch.Tensor) -> torch.Tensor | float:
        """How far a tile's score and a pair's own score can lie apart."""
        bound = 2 * _growth(rows.shape[1]) * _UNIT
        if self.bias is None:
            return bound
        longest = (-2.0 * self.bias.min()).sqrt()
        return bound * (rows.norm(dim=1) + longest).square()

    def measure(self, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Scores of chosen pairs, each by a sum in fixed order, as they are ranked and returned: (n, m) float32; −inf where id < 0."""
        if rows.device.type == "cpu":
            found = torch.empty(ids.shape, dtype=torch.float32)
            import faiss  # here, so that who only needs Graph does not load it

            call = getattr(
                faiss, "fvec_inner_products_by_idx" if self.metric == "cosine" else "fvec_L2sqr_by_idx"
            )
            rows, ids = rows.contiguous(), ids.contiguous()
            ptr = faiss.swig_ptr
            call(
                ptr(found.numpy()),
                ptr(rows.numpy()),
                ptr(self.points.numpy()),
                ptr(ids.numpy()),
                rows.shape[1],
                len(rows),
                ids.shape[1],
            )
        else:
            found = torch.cat(
                [self._measure_there(r, i) for r, i in zip(rows.split(1024), ids.split(1024), strict=True)]
            )
        found = found.clamp_(-1.0, 1.0) if self.metric == "cosine" else found.sqrt_().neg_()
        return found.masked_fill_(ids < 0, -torch.inf)

    def _measure_there(self, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        columns = []
        for chosen in ids.clamp_min(0).split(64, dim=1):
            others = self.points[chosen]
            pair = others * rows[:, None] if self.metric == "cosine" else (others - rows[:, None]).square()
            columns.append(pair.sum(-1))
        return torch.cat(columns, dim=1)

    def score_of(self, similarity: torch.Tensor) -> torch.Tensor:
        return similarity if self.metric == "cosine" else -0.5 * similarity.square()


def _growth(dim: int) -> float:
    """Rounding errors of a dot product in units of roundoff: at most D, and 8·√D but for a chance below 1e-10."""
    return min(dim, 8.0 * dim**0.5) + 4.0


def _scale(features: np.ndarray) -> float:
    largest = max(
        float(np.abs(features[i : i + 4096].astype(np.float64)).max()) for i in range(0, len(features), 4096)
    )
    if largest == 0.0:
        return 1.0
    # a power of two, so that scaling rounds nothing
    return 2.0 ** -np.ceil(np.log2(largest) + 0.5 * np.log2(features.shape[1]) + 1e-6)


def _prepare(rows: np.ndarray, metric: str, scale: float) -> np.ndarray:
    """Rows as they are multiplied: normalised in float64, so that neither overflows nor copies of a row differ; −0 becomes 0."""
    wide = rows.astype(np.float64)
    if metric == "euclidean":
        wide *= scale
    else:
        largest = np.abs(wide).max(axis=1, keepdims=True)
        wide /= np.where(largest > 1e100, largest, 1.0)
        wide /= np.maximum(np.sqrt(np.einsum("nd,nd->n", wide, wide))[:, None], 1e-12)
    return wide.astype(np.float32) + np.float32(0.0)


def _surplus(keys: np.ndarray, points: np.ndarray, position: np.ndarray, k: int) -> np.ndarray:
    """Marks rows that come after more than k equal ones: ties go to the lower index, so no row can list them."""
    extra = np.zeros(len(keys), bool)
    _, group, count = np.unique(keys, return_inverse=True, return_counts=True)
    for large in np.flatnonzero(count > k + 1):
        members = np.flatnonzero(group == large)
        same = members[(points[position[members]] == points[position[members[0]]]).all(axis=1)]
        extra[same[k + 1 :]] = True
    return extra


@dataclass
class _Best:
    """The best candidates seen so far of a block of rows, and the bound that a newcomer must beat; several threads may offer at once."""

    keep: int
    rows: int
    where: torch.device
    bound: torch.Tensor = field(init=False)
    score: torch.Tensor = field(init=False)
    ids: torch.Tensor = field(init=False)
    waiting: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    count: int = 0
    untouched: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.bound = torch.full((self.rows,), -torch.inf, device=self.where)
        self.score = torch.full((self.rows, 0), -torch.inf, device=self.where)
        self.ids = torch.full((self.rows, 0), -1, dtype=torch.int32, device=self.where)

    def offer(self, tile: torch.Tensor, first: int, mask: torch.Tensor, *, across: bool) -> None:
        """Take in a tile of scores whose rows (columns, if ``across``) are this block's and whose other side starts at point ``first``."""
        if self.untouched:
            bound = self._first_bound(tile, across)
            with self.lock:
                self.untouched = False
                self.bound = torch.maximum(self.bound, bound)
        bound = self.bound  # if another thread raises it meanwhile, a few more pass than need to
        passes = mask[: tile.numel()].view(tile.shape)
        torch.gt(tile, bound if across else bound[:, None], out=passes)
        flat = _true_positions(passes.view(-1))
        if len(flat) == 0:
            return
        row = flat.div(tile.shape[1], rounding_mode="floor")
        column = flat - row * tile.shape[1]
        if across:
            row, column = column, row
        found = (row.int(), (column + first).int(), tile.view(-1)[flat])
        with self.lock:
            self.waiting.append(found)
            self.count += len(flat)
            if self.count >= self.rows * self.keep:
                self.merge()

    def _first_bound(self, tile: torch.Tensor, across: bool) -> torch.Tensor:
        # maxima of disjoint groups are distinct candidates, so the keep-th largest of them bounds the keep-th
        # best from below
        others = tile.shape[0] if across else tile.shape[1]
        groups = others // _GROUP
        if groups < self.keep:
            return self.bound
        if across:
            largest = tile[: groups * _GROUP].view(groups, _GROUP, -1).amax(1).T.contiguous()
        else:
            largest = tile[:, : groups * _GROUP].reshape(len(tile), groups, _GROUP).amax(2)
        return largest.topk(self.keep, dim=1).values[:, -1].contiguous()

    def merge(self) -> None:
        if not self.waiting:
            return
        row, ids, score = (torch.cat(part) for part in zip(*self.waiting, strict=True))
        self.waiting, self.count = [], 0
        row, order = torch.sort(row, stable=True)
        row = row.long()
        counts = torch.bincount(row, minlength=self.rows)
        slot = (
            torch.arange(len(row), device=self.where) - (counts.cumsum(0) - counts)[row] + self.score.shape[1]
        )
        width = self.score.shape[1] + int(counts.max())
        all_scores = torch.full((self.rows, width), -torch.inf, device=self.where)
        all_ids = torch.full((self.rows, width), -1, dtype=torch.int32, device=self.where)
        all_scores[:, : self.score.shape[1]] = self.score
        all_ids[:, : self.score.shape[1]] = self.ids
        all_scores[row, slot] = score[order]
        all_ids[row, slot] = ids[order]
        if width > self.keep:
            all_scores, chosen = all_scores.topk(self.keep, dim=1)
            all_ids = all_ids.gather(1, chosen)
            self.bound = torch.maximum(self.bound, all_scores[:, -1])
        self.score, self.ids = all_scores, all_ids


def _true_positions(mask: torch.Tensor) -> torch.Tensor:
    """Positions of a sparse flat mask, eight bytes at a time."""
    if mask.numel() % 8:
        return mask.nonzero().view(-1)
    words = mask.view(torch.int64).nonzero().view(-1)
    inner = mask.view(-1, 8)[words].nonzero()
    return words[inner[:, 0]] * 8 + inner[:, 1]


@dataclass(frozen=True)
class _Block:
    """Query rows that are searched together: their prepared vectors, the point that each must not list (−1: none), where they go."""

    rows: torch.Tensor
    bias: torch.Tensor | None
    left_out: torch.Tensor
    target: np.ndarray


def _blocks_of(queries: np.ndarray, space: _Space) -> Iterator[_Block]:
    for start in range(0, len(queries), space.tile):
        target = np.arange(start, min(start + space.tile, len(queries)))
        rows = torch.from_numpy(_prepare(queries[target], space.metric, space.scale)).to(space.points.device)
        bias = None if space.bias is None else (-0.5 * rows.double().square().sum(1)).float()
        yield _Block(rows, bias, torch.full((len(rows), 1), -1, device=rows.device), target)


def _columns(space: _Space) -> list[slice]:
    return [slice(start, min(start + space.tile, space.size)) for start in range(0, space.size, space.tile)]


class _Buffers(threading.local):
    """Each thread's tile of scores and mask."""

    def __init__(self, space: _Space) -> None:
        side = space.tile**2
        self.tile = torch.empty(side, device=space.points.device)
        self.mask = torch.empty(side, dtype=torch.bool, device=space.points.device)


def _run(
    work: Callable[[Task], int],
    tasks: Iterator[Task],
    total: int,
    where: torch.device,
    progress: Progress | None,
) -> None:
    """Work through tasks, as many at once on a CPU as torch has threads, each on one thread.

    Tiles side by side need no barrier inside a tile, which on a busy machine costs more than the work. What
    ``work`` returns adds up to ``total``.
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
    with ThreadPoolExecutor(threads) as pool:
        _single_threaded(pool, threads)
        running: set[Future[int]] = {pool.submit(work, task) for task in islice(tasks, 2 * threads)}
        try:
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    report(future.result())
                running |= {pool.submit(work, task) for task in islice(tasks, len(finished))}
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _single_threaded(pool: ThreadPoolExecutor, threads: int) -> None:
    """The pool's threads use one thread each inside torch and faiss; every other thread keeps its number."""
    import faiss

    ready = threading.Barrier(threads + 1)

    def prepare() -> None:
        # a thread takes over the process-wide number when it first asks for it, and then no more
        torch.get_num_threads()
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        ready.wait()

    for _ in range(threads):
        pool.submit(prepare)
    ready.wait()
    torch.set_num_threads(threads)  # the process-wide number, for threads to come


def _search(
    space: _Space,
    k: int,
    blocks: Iterator[_Block],
    total: int,
    progress: Progress | None,
    into: Graph | None = None,
) -> Graph:
    """Neighbours of blocks of queries among the points: every tile serves its rows."""
    graph = into or _empty(total, k)
    columns, buffers = _columns(space), _Buffers(space)

    def work(block: _Block) -> int:
        best = _Best(k + 1 + _SPARE, len(block.rows), space.points.device)
        for column in columns:
            scores = space.scores(block.rows, block.bias, column, buffers.tile)
            best.offer(scores, column.start, buffers.mask, across=False)
        _finish(space, k, block, best, graph)
        return len(block.rows)

    _run(work, blocks, total, space.points.device, progress)
    return graph


def _search_all(space: _Space, k: int, left_out: np.ndarray, progress: Progress | None) -> Graph:
    """Neighbours of the points among themselves: the score is symmetric, so a tile above the diagonal also serves its columns."""
    n = len(space.order)
    graph = _empty(n, k)
    where = space.points.device
    position = np.full(n, -1)
    position[space.order[: space.size]] = np.arange(space.size)
    without = torch.from_numpy(position[left_out[space.order]])[:, None].to(where)

    def block(rows: slice) -> _Block:
        bias = None if space.bias is None else space.bias[rows]
        return _Block(space.points[rows], bias, without[rows], space.order[rows])

    columns, buffers = _columns(space), _Buffers(space)
    best = [_Best(k + 1 + _SPARE, column.stop - column.start, where) for column in columns]
    missing = [len(columns)] * len(columns)  # tiles that a block still waits for
    lock = threading.Lock()

    def work(pair: tuple[int, int]) -> int:
        here, there = pair
        rows = columns[here]
        bias = None if space.bias is None else space.bias[rows]
        scores = space.scores(space.points[rows], bias, columns[there], buffers.tile)
        best[here].offer(scores, columns[there].start, buffers.mask, across=False)
        if there != here:
            best[there].offer(scores, rows.start, buffers.mask, across=True)
        complete = []
        with lock:
            for part in {here, there}:
                missing[part] -= 1
                if missing[part] == 0:
                    complete.append(part)
        for part in complete:
            _finish(space, k, block(columns[part]), best[part], graph)
            best[part] = _Best(0, 0, where)  # its memory is not needed any more
        return sum(columns[part].stop - columns[part].start for part in complete)

    pairs = ((here, there) for here in range(len(columns)) for there in range(here, len(columns)))
    _run(work, pairs, space.size, where, progress)
    surplus = (block(slice(start, min(start + space.tile, n))) for start in range(space.size, n, space.tile))
    if space.size < n:
        _search(space, k, surplus, n, None, into=graph)
    return graph


def _empty(n: int, k: int) -> Graph:
    return Graph(np.empty((n, k), np.int32), np.empty((n, k), np.float32))


def _finish(space: _Space, k: int, block: _Block, best: _Best, graph: Graph) -> None:
    """Rank the candidates by their own scores and write them; search again where the bound does not exclude all others."""
    best.merge()
    ids = best.ids.long()
    ids = ids.masked_fill(ids == block.left_out, -1)
    similarity = space.measure(block.rows, ids)
    original = torch.from_numpy(space.order).to(ids.device)[ids.clamp_min(0)]
    # by index first, then stably by similarity: ties go to the lower index
    original, by_index = original.masked_fill(ids < 0, len(space.order)).sort(dim=1)
    similarity, by_score = similarity.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    original = original.gather(1, by_score)
    if similarity.shape[1] < k:
        similarity = torch.nn.functional.pad(similarity, (0, k - similarity.shape[1]), value=-torch.inf)
        original = torch.nn.functional.pad(original, (0, k - original.shape[1]), value=len(space.order))
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
    space: _Space, k: int, part: torch.Tensor, block: _Block, floor: torch.Tensor, graph: Graph
) -> None:
    """Every point whose float64 score could reach the k-th best found so far is measured."""
    rows = block.rows[part]
    wide = rows.double()
    floor = floor.double()
    reach = _growth(rows.shape[1]) * _UNIT * 4.0 * (floor.abs() if space.metric == "euclidean" else 1.0)
    lowest = floor - reach - 1e-12
    found = []
    for column in _columns(space):
        right = space.points[column].double()
        scores = wide @ right.T
        if space.metric == "euclidean":
            scores -= 0.5 * (wide.square().sum(1)[:, None] + right.square().sum(1))
        at = (scores >= lowest[:, None]).nonzero()
        at[:, 1] += column.start
        found.append(at)
    row, ids = torch.cat(found).unbind(1)
    kept = ids != block.left_out[part, 0][row]
    row, ids = row[kept], ids[kept]
    similarity = torch.cat(
        [space.measure(rows[r], i[:, None]) for r, i in zip(row.split(2**16), ids.split(2**16), strict=True)]
    )
    owner, value, original = row.cpu().numpy(), similarity[:, 0].cpu().numpy(), space.order[ids.cpu().numpy()]
    ranked = np.lexsort((original, -value, owner))
    counts = np.bincount(owner, minlength=len(part))
    chosen = ranked[(counts.cumsum() - counts)[:, None] + np.arange(k)]
    target = block.target[part.cpu().numpy()]
    graph.neighbours[target] = original[chosen]
    graph.similarity[target] = value[chosen]
