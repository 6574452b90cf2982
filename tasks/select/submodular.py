"""Submodular selection: facility location, graph cut and log determinant, greedily, dense or on the kNN graph."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.select.greedy import FacilityLocation, Function, SparseFacilityLocation, check, greedy
from winnow.tasks.select.signals import Selection, Signals
from winnow.tasks.select.similarity import (
    UNIT,
    Kernel,
    check_dense,
    dense,
    in_order,
    nearest_of,
    refuse_above,
)

__all__ = ["KERNELS", "check_factor", "facility_location", "graph_cut", "log_determinant"]

KERNELS = ("features", "gradients")
# added to log determinant's diagonal: float32 similarities make a singular kernel indefinite by less than
# that
RIDGE = 1e-4

_GRAIN = 2.0**-40  # what is left of a variance is rounded to it, so that copies are tied
_COLUMNS = 64  # of the kernel, computed together

Numbers = NDArray[Any]


# -- functions: the gain of each sample, given the picks so far ----------------------------------------------


class _SparseGraphCut(Function):
    """Graph cut on the undirected kNN graph; a pick changes the gains of its neighbours."""

    sweeping = False

    def __init__(self, listed: Any) -> None:
        both = listed.maximum(listed.T.tocsr()).tocsr()
        self.starts, self.ids, self.weights = both.indptr, both.indices, both.data.astype(np.int64)
        self.value = np.add.reduceat(self.weights, self.starts[:-1]) - UNIT

    def add(self, row: int) -> None:
        own = slice(self.starts[row], self.starts[row + 1])
        self.value[self.ids[own]] -= 2 * self.weights[own]


class _Columns:
    """Columns of the kernel, in units: with the one that is asked for come those of the next best samples, in one product."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.place: dict[int, int] = {}
        self.block = np.empty((0, len(kernel)), np.int32)

    def get(self, row: int, value: Numbers, picked: NDArray[np.bool_]) -> NDArray[np.int64]:
        if row not in self.place:
            count = min(_COLUMNS, len(value))
            likely = np.argpartition(np.where(picked, -np.inf, value), len(value) - count)[-count:]
            rows = np.unique(np.append(likely[~picked[likely]], row))
            self.place = {int(each): place for place, each in enumerate(rows)}
            self.block = self.kernel.tile(rows, slice(None))
        column = self.block[self.place[row]].astype(np.int64)
        column[row] = UNIT
        return column


class _GraphCut(Function):
    """Graph cut on the dense kernel, of which only the picks' columns are computed."""

    def __init__(self, kernel: Kernel) -> None:
        self.columns = _Columns(kernel)
        self.value = kernel.sums()
        self.picked = np.zeros(len(kernel), bool)

    def add(self, row: int) -> None:
        self.value -= 2 * self.columns.get(row, self.value, self.picked)
        self.picked[row] = True


class _LogDeterminant(Function):
    """log det of the kernel among the picks, by a Cholesky factor that grows with each pick; gains in natural units."""

    def __init__(self, kernel: Kernel, budget: int) -> None:
        self.columns = _Columns(kernel)
        self.factor = np.empty((budget, len(kernel)))
        self.left = np.full(len(kernel), 1 + RIDGE)  # variance that the picks do not explain
        self.value = np.log(self.left)
        self.picked = np.zeros(len(kernel), bool)
        self.count = 0

    def add(self, row: int) -> None:
        column = self.columns.get(row, self.value, self.picked) / UNIT
        column[row] += RIDGE
        done = self.factor[: self.count]
        new = (column - done[:, row] @ done) / math.sqrt(self.left[row])
        self.factor[self.count] = new
        self.count += 1
        self.left = np.maximum(
            self.left - new * new, RIDGE
        )  # what is left is at least that, but for rounding
        self.value = np.log(self.left)
        self.picked[row] = True


class _LogDeterminantOfFeatures(Function):
    """The same of S = ΦΦᵀ with few columns, φ = [1, x] / √2, in memory that does not grow with the picks.

    A gain is the logarithm of λ + s_xx − s_xA (S_A + λI)⁻¹ s_Ax = σ_x² + φ_xᵀ P φ_x with σ² = λ + s_xx − φᵀφ
    and

        P = (I + Σ_{a ∈ A} φ_a φ_aᵀ / σ_a²)⁻¹

    so that a pick takes (Pφ)(Pφ)ᵀ / (σ² + φᵀPφ) off P, and the square of φ_xᵀPφ over the same off what is
    left of x.
    """

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        n, dim = vectors.shape
        self.phi = np.empty((n, dim + 1))
        self.phi[:, 0], self.phi[:, 1:] = math.sqrt(0.5), math.sqrt(0.5) * vectors
        self.own = np.maximum(1 + RIDGE - np.einsum("nd,nd->n", self.phi, self.phi), RIDGE)  # σ²
        self.inverse = np.eye(dim + 1)
        self.left = np.full(n, 1 + RIDGE)
        self.value = np.log(self.left)

    def add(self, row: int) -> None:
        seen = self.inverse @ self.phi[row]
        explained = float(self.own[row] + self.phi[row] @ seen)
        self.inverse -= np.outer(seen / explained, seen)
        self.left = np.maximum(self.left - np.square(self.phi @ seen) / explained, RIDGE)
        self.value = np.log(np.rint(self.left / _GRAIN) * _GRAIN)


# -- the selectors -------------------------------------------------------------------------------------------


def _check(kernel: str, neighbours: int | None, optimizer: str, upstream: bool) -> None:
    check(optimizer, neighbours, upstream=upstream)
    if kernel not in KERNELS:
        raise BadInput(f"kernel = {kernel!r} is none of {', '.join(KERNELS)}.")


def check_factor(n: int, budget: int, *, kernel: str = "features", upstream: bool = False, **_: Any) -> None:
    """Refuse a Cholesky factor of gradients that is too large, before anything is computed.

    Raises:
        BadInput: with its size, and what to do instead.
    """
    if kernel == "gradients" or upstream:
        what = f"the Cholesky factor of {budget:,} picks of {n:,} samples"
        refuse_above(
            8 * n * budget, what, "pass kernel='features', select fewer, or per class: balanced=True"
        )


def facility_location(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    kernel: str = "features",
    neighbours: int | None = None,
    optimizer: str = "lazy",
    upstream: bool = False,
) -> Selection:
    """Keep samples such that each sample has a similar one among them: greedy facility location.

    With s_ij = 0.5 + 0.5 cos(x_i, x_j), the picks maximise greedily

        f(S) = Σ_i max_{j ∈ S} s_ij,    gain of x = Σ_i max(0, s_ix − max_{j ∈ S} s_ij)

    which is monotone and submodular: the greedy value is at least 1 − 1/e of the best. With ``neighbours`` a
    sample can be represented by itself and its nearest neighbours only; other similarities count as 0.
    Similarities are rounded to 2⁻²⁰, and gains are then exact.

    Args:
        signals: features; residuals for the kernel of gradients; the cosine kNN graph is taken if given and
            ``neighbours`` is asked for.
        budget: k, samples to keep.
        generator: breaks ties, and draws for the stochastic optimiser.
        kernel: ``"features"``, or ``"gradients"`` for x = r ⊗ [h, 1], the last layer's gradients, with
            residuals r and features h.
        neighbours: of a sample in the kNN-sparse kernel; None for the dense one.
        optimizer: ``"lazy"`` and ``"naive"`` pick the same; ``"stochastic"`` looks at ⌈N/k · ln 100⌉ random
            samples for each pick; ``"approximate_lazy"`` accepts a gain of 0.9 of the highest bound.
        upstream: replay the published code, which has the kernel of gradients only.

    Returns:
        Selection in pick order: a smaller coreset is the beginning of a larger one (but with
        ``"stochastic"``); gains are those of f.

    Raises:
        BadInput: a parameter or graph that cannot be used, or a dense kernel of more than 4 GiB (N > 32,768).
        MissingSignal: gradients without residuals.

    Cost:
        Dense: N²·D/2 multiplications, 4·N² bytes, and visits to some N·ln k rows of the kernel. kNN-sparse:
        the graph, then O(k) visits of a pick's surroundings; O(N · neighbours) memory.

    References:
        Mirzasoleiman, Karbasi, Sarkar and Krause, Distributed Submodular Maximization, NeurIPS 2013; Minoux,
        Accelerated Greedy Algorithms, 1978; Mirzasoleiman et al., Lazier Than Lazy Greedy, AAAI 2015;
        Lindgren, Wu and Dimakis, Leveraging Sparsity for Efficient Submodular Data Summarization, NeurIPS
        2016. Guo, Zhao and Bai, DeepCore, DEXA 2022.
        Upstream: DeepCore@74ec709 deepcore/methods/submodular.py, methods_utils/submodular_function.py,
        submodular_optimizer.py.

    Differences from upstream:
        Features by default (upstream: gradients, written out). Picks keep their order, ties go by the
        generator (upstream: the first). The stochastic optimiser looks at 46 samples a pick at 10 %
        (upstream: at one, which is random selection).

    >>> s = Signals(n=4, features=np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]]))
    >>> facility_location(s, 2, generator=np.random.default_rng(0)).indices.tolist()
    [2, 3]
    """
    _check(kernel, neighbours, optimizer, upstream)
    given, rows, keys = _prepared(signals, generator, neighbours, upstream)
    function: Function
    if neighbours is not None:
        function = SparseFacilityLocation(nearest_of(given, kernel, neighbours))
    else:
        check_dense(signals.n, budget, upstream=upstream)
        function = FacilityLocation(dense(Kernel.of(given, "gradients" if upstream else kernel)))
    return _selection(*greedy(function, budget, optimizer, keys, generator), rows, UNIT)


def graph_cut(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    kernel: str = "features",
    neighbours: int | None = None,
    optimizer: str = "lazy",
    upstream: bool = False,
) -> Selection:
    """Keep samples that are similar to the rest and not to one another: greedy graph cut.

    With s_ij = 0.5 + 0.5 cos(x_i, x_j), the picks maximise greedily

        f(S) = Σ_{i ∈ V} Σ_{j ∈ S} s_ij − Σ_{i, j ∈ S} s_ij,    gain of x = Σ_{i ≠ x} s_ix − 2 Σ_{j ∈ S} s_jx

    that is, the weight of the edges between S and the rest. It is submodular but not monotone: from about
    half of the samples on, gains are negative, and the budget is filled all the same. With ``neighbours``,
    two samples have an edge if either lists the other.

    Args:
        signals: features; residuals for the kernel of gradients; the cosine kNN graph is taken if given and
            ``neighbours`` is asked for.
        budget: k, samples to keep.
        generator: breaks ties, and draws for the stochastic optimiser.
        kernel: ``"features"``, or ``"gradients"`` for x = r ⊗ [h, 1], the last layer's gradients, with
            residuals r and features h.
        neighbours: of a sample in the kNN-sparse kernel; None for the dense one.
        optimizer: ``"lazy"`` and ``"naive"`` pick the same; ``"stochastic"`` looks at ⌈N/k · ln 100⌉ random
            samples for each pick; ``"approximate_lazy"`` accepts a gain g of g ≥ b − 0.1·|b|, with b the
            highest bound.
        upstream: replay the published code, which has the kernel of gradients only.

    Returns:
        Selection in pick order: a smaller coreset is the beginning of a larger one (but with
        ``"stochastic"``); gains are those of f.

    Raises:
        BadInput: a parameter or graph that cannot be used.
        MissingSignal: gradients without residuals.

    Cost:
        Dense: N·k·D multiplications, in products of 64 columns, or fewer; O(N·D) memory, the kernel is never
        written out. kNN-sparse: the graph, then O(k · neighbours); O(N · neighbours) memory.

    References:
        Iyer, Khargoankar, Bilmes and Asanani, Submodular Combinatorial Information Measures with Applications
        in Machine Learning, ALT 2021. Guo, Zhao and Bai, DeepCore, DEXA 2022.
        Upstream: DeepCore@74ec709 deepcore/methods/submodular.py, methods_utils/submodular_function.py,
        submodular_optimizer.py.

    Differences from upstream:
        As facility_location. Approximate lazy greedy ends (upstream: a negative gain is never within 0.9 of
        its bound, an endless loop), and gains leave out s_xx, the same for all.

    >>> s = Signals(n=6, features=np.array([[1.0, 0.0], [1.0, 0.2], [1.0, -0.2], [0.0, 1.0], [0.2, 1.0], [-0.2, 1.0]]))
    >>> sorted(graph_cut(s, 2, generator=np.random.default_rng(0)).indices.tolist())
    [1, 4]
    """
    _check(kernel, neighbours, optimizer, upstream)
    given, rows, keys = _prepared(signals, generator, neighbours, upstream)
    function: Function
    if neighbours is not None:
        function = _SparseGraphCut(nearest_of(given, kernel, neighbours))
    else:
        function = _GraphCut(Kernel.of(given, "gradients" if upstream else kernel))
    return _selection(*greedy(function, budget, optimizer, keys, generator), rows, UNIT)


def log_determinant(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    kernel: str = "features",
    neighbours: int | None = None,
    optimizer: str = "lazy",
    upstream: bool = False,
) -> Selection:
    """Keep samples that span the largest volume: greedy log determinant, the mode of a determinantal point process.

    With s_ij = 0.5 + 0.5 cos(x_i, x_j) and S the kernel among the picks A, the picks maximise greedily

        f(A) = log det(S_A + λI),    gain of x = log(λ + s_xx − s_xA (S_A + λI)⁻¹ s_Ax),    λ = 10⁻⁴

    A copy of a pick gains almost nothing: log 2λ.

    Args:
        signals: features; residuals for the kernel of gradients.
        budget: k, samples to keep.
        generator: breaks ties, and draws for the stochastic optimiser.
        kernel: ``"features"``, or ``"gradients"`` for x = r ⊗ [h, 1], the last layer's gradients, with
            residuals r and features h.
        neighbours: must be None: a kNN-sparse kernel is not positive definite, hence has no log determinant.
        optimizer: ``"lazy"`` and ``"naive"`` pick the same; ``"stochastic"`` looks at ⌈N/k · ln 100⌉ random
            samples for each pick; ``"approximate_lazy"`` accepts a gain g of g ≥ b − 0.1·|b|, with b the
            highest bound.
        upstream: replay the published code, which has the kernel of gradients only.

    Returns:
        Selection in pick order: a smaller coreset is the beginning of a larger one (but with
        ``"stochastic"``); gains are those of f, with ``upstream`` s_xA S_A⁺ s_Ax.

    Raises:
        BadInput: a parameter that cannot be used; gradients with 8·N·k bytes of more than 4 GiB.
        MissingSignal: gradients without residuals.

    Cost:
        Features: N·k·D multiplications, 8·N·D bytes. Gradients: N·k²/2 multiplications and at most 64·N·k·(C
        + D) more for columns of the kernel (N·k·(C + D) where the guess of the next picks is right); 8·N·k
        bytes. The kernel is never written out.

    References:
        Chen, Zhang and Zhou, Fast Greedy MAP Inference for Determinantal Point Process to Improve
        Recommendation Diversity, NeurIPS 2018, algorithm 1. Guo, Zhao and Bai, DeepCore, DEXA 2022.
        Upstream: DeepCore@74ec709 deepcore/methods/submodular.py, methods_utils/submodular_function.py,
        submodular_optimizer.py.

    Differences from upstream:
        Upstream's gain is s_xA S_A⁺ s_Ax, without "s_xx −" and the logarithm: it prefers copies of what it
        has, and its lazy greedy returns the first k samples.

    >>> s = Signals(n=4, features=np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    >>> 3 in log_determinant(s, 2, generator=np.random.default_rng(0)).indices
    True
    """
    _check(kernel, neighbours, optimizer, upstream)
    if neighbours is not None:
        raise BadInput(
            f"neighbours = {neighbours}: log_determinant needs the dense kernel; a kNN-sparse one is not "
            "positive definite.",
            remedy="leave neighbours out, or use facility_location or graph_cut",
        )
    check_factor(signals.n, budget, kernel=kernel, upstream=upstream)
    if upstream:
        picks, gains = _published_log_determinant(Kernel.of(signals, "gradients"), budget, optimizer)
        return Selection.of(picks, gains=gains)
    given, rows, keys = _prepared(signals, generator, None, upstream)
    tiles = Kernel.of(given, kernel)
    function = (
        _LogDeterminantOfFeatures(tiles.vectors) if kernel == "features" else _LogDeterminant(tiles, budget)
    )
    return _selection(*greedy(function, budget, optimizer, keys, generator), rows, 1)


def _prepared(
    signals: Signals, generator: np.random.Generator, neighbours: int | None, upstream: bool
) -> tuple[Signals, NDArray[np.int64], NDArray[np.float64]]:
    if upstream:  # as stored, ties to the first
        return signals, np.arange(signals.n), np.arange(signals.n, dtype=np.float64)
    return in_order(signals, generator.random(signals.n), graph=neighbours is not None)


def _selection(picks: NDArray[np.int64], gains: Numbers, rows: NDArray[np.int64], unit: int) -> Selection:
    return Selection.of(rows[picks], gains=gains / unit)


def _published_log_determinant(
    kernel: Kernel, budget: int, optimizer: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Upstream's gain s_xA S_A⁺ s_Ax. It rises from 0, so that lazy greedy stops at the first sample it looks at, in order."""
    n = len(kernel)
    picks: list[int] = []
    gains = np.zeros(budget)
    columns = np.empty((budget, n))
    for step in range(budget):
        looked_at = np.array([step]) if optimizer == "lazy" else np.setdiff1d(np.arange(n), picks)
        to_picks = columns[:step, looked_at]
        value = (
            np.einsum("an,an->n", np.linalg.pinv(columns[:step, picks]) @ to_picks, to_picks)
            if picks
            else np.zeros(len(looked_at))
        )
        row = int(looked_at[value.argmax()])
        gains[step] = value.max()
        picks.append(row)
        columns[step] = kernel.tile(np.array([row]), slice(None))[0] / UNIT
        columns[step, row] = 1
    return np.array(picks), gains
