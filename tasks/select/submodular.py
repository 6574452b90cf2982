"""Submodular selection: facility location, graph cut and log determinant, maximised greedily."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.select.greedy import check, greedy
from winnow.tasks.select.ranking import order
from winnow.tasks.select.set_functions import (
    RIDGE,
    FacilityLocation,
    Function,
    GraphCut,
    LogDeterminant,
    LogDeterminantOfFeatures,
    SparseFacilityLocation,
    SparseGraphCut,
)
from winnow.tasks.select.signals import NO_ROWS, Selection, Signals
from winnow.tasks.select.similarity import UNIT, Kernel, check_dense, dense, nearest_of, refuse_above

__all__ = [
    "KERNELS",
    "SET_FUNCTIONS",
    "check_factor",
    "definition",
    "facility_location",
    "graph_cut",
    "log_determinant",
]

Rows = NDArray[np.int64]

KERNELS = ("features", "gradients")
SET_FUNCTIONS = {  # f(S) of a kernel s and picks S
    "facility_location": lambda s, S: s[:, S].max(axis=1).sum(),
    "graph_cut": lambda s, S: s[:, S].sum() - s[np.ix_(S, S)].sum(),
    "log_determinant": lambda s, S: np.linalg.slogdet(s[np.ix_(S, S)] + RIDGE * np.eye(len(S)))[1],
}


def definition(
    name: str, signals: Signals, budget: int, *, generator: np.random.Generator, already: Rows = NO_ROWS
) -> Rows:
    """Greedy picks by f(S) itself, on features: the reference that tests hold the engine to."""
    x = signals.features.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    s = np.rint((0.5 + 0.5 * x @ x.T) * UNIT) / UNIT
    np.fill_diagonal(s, 1.0)
    f, ties = SET_FUNCTIONS[name], generator.random(signals.n)
    S: list[int] = already.tolist()
    while len(S) < len(already) + budget:
        value = np.array([f(s, [*S, row]) if row not in S else -np.inf for row in range(signals.n)])
        S.append(int(order(-value.round(9), ties)[0]))  # arg max; rounding makes equals tie
    return np.array(S[len(already) :])


def _check(kernel: str, neighbours: int | None, optimizer: str) -> None:
    check(optimizer, neighbours)
    if kernel not in KERNELS:
        raise BadInput(f"kernel = {kernel!r} is none of {', '.join(KERNELS)}.")


def check_factor(n: int, budget: int, *, kernel: str = "features", upstream: bool = False, **_: Any) -> None:
    """Refuse a Cholesky factor of gradients that is too large, before anything is computed.

    Raises:
        BadInput: with its size, and what to do instead.
    """
    if kernel == "gradients" or upstream:
        what = f"the Cholesky factor of {budget:,} picks of {n:,} samples"
        remedy = "pass kernel='features', select fewer, or per class: balanced=True"
        refuse_above(8 * n * budget, what, remedy)


def facility_location(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: Rows = NO_ROWS,
    kernel: str = "features",
    neighbours: int | None = None,
    optimizer: str = "lazy",
) -> Selection:
    """Keep samples such that each sample has a similar one among them: greedy facility location.

    With s_ij = 0.5 + 0.5 cos(x_i, x_j), the picks maximise greedily

        f(S) = Σ_i max_{j ∈ S} s_ij,    gain of x = Σ_i max(0, s_ix − max_{j ∈ S} s_ij)

    which is monotone and submodular: the greedy value is at least 1 − 1/e of the best. With ``neighbours``, a
    sample can only be represented by itself and its nearest neighbours; other similarities count as 0.
    Similarities are rounded to 2⁻²⁰, and gains are then exact.

    Args:
        signals: features; residuals for the kernel of gradients; the cosine kNN graph is used if given and
            ``neighbours`` is set.
        budget: k, samples to keep.
        generator: breaks ties, and draws for the stochastic optimiser.
        already: int64 (m,), rows that count as picked before the first pick, in this order.
        kernel: ``"features"``, or ``"gradients"`` for x = r ⊗ [h, 1], the last layer's gradients, with
            residuals r and features h.
        neighbours: of a sample in the kNN-sparse kernel; None for the dense one.
        optimizer: ``"lazy"`` and ``"naive"`` pick the same; ``"stochastic"`` looks at ⌈N/k · ln 100⌉ random
            samples for each pick; ``"approximate_lazy"`` accepts a gain of 0.9 of the highest bound.

    Returns:
        Selection in pick order: a smaller coreset is the beginning of a larger one (except with
        ``"stochastic"``); gains are those of f.

    Raises:
        BadInput: a parameter or graph that cannot be used, or a dense kernel of more than 4 GiB (N > 32,768).
        MissingSignal: gradients without residuals.

    Cost:
        Dense: N²·D/2 multiplications, 4·N² bytes, and visits to some N·ln k rows of the kernel. kNN-sparse:
        the graph, then O(k) visits to a pick's surroundings; O(N · neighbours) memory.

    References:
        Mirzasoleiman, Karbasi, Sarkar and Krause, Distributed Submodular Maximization, NeurIPS 2013; Minoux,
        Accelerated Greedy Algorithms, 1978; Mirzasoleiman et al., Lazier Than Lazy Greedy, AAAI 2015;
        Lindgren, Wu and Dimakis, Leveraging Sparsity for Efficient Submodular Data Summarization, NeurIPS
        2016. Guo, Zhao and Bai, DeepCore, DEXA 2022.
        Upstream: DeepCore@74ec709 deepcore/methods/submodular.py, methods_utils/submodular_function.py,
        submodular_optimizer.py.

    Differences from upstream:
        Features by default (upstream: gradients, written out). Picks keep their order, the generator breaks
        ties (upstream: the first wins). The stochastic optimiser looks at 46 samples per pick at 10 %
        (upstream: at one, which is random selection). ``upstream=True`` replays lazy and naive greedy.

    >>> s = Signals(n=4, features=np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]]))
    >>> facility_location(s, 2, generator=np.random.default_rng(0)).indices.tolist()
    [2, 3]
    """
    _check(kernel, neighbours, optimizer)
    function: Function
    if neighbours is not None:
        function = SparseFacilityLocation(nearest_of(signals, kernel, neighbours))
    else:
        check_dense(signals.n, budget)
        function = FacilityLocation(dense(Kernel.of(signals, kernel)))
    return _maximised(function, budget, optimizer, generator, already)


def graph_cut(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: Rows = NO_ROWS,
    kernel: str = "features",
    neighbours: int | None = None,
    optimizer: str = "lazy",
) -> Selection:
    """Keep samples that are similar to the rest and not to one another: greedy graph cut.

    With s_ij = 0.5 + 0.5 cos(x_i, x_j), the picks maximise greedily

        f(S) = Σ_{i ∈ V} Σ_{j ∈ S} s_ij − Σ_{i, j ∈ S} s_ij,    gain of x = Σ_{i ≠ x} s_ix − 2 Σ_{j ∈ S} s_jx

    that is, the weight of the edges between S and the rest. It is submodular but not monotone: beyond about
    half of the samples, gains are negative; the budget is filled all the same. With ``neighbours``, two
    samples have an edge if either lists the other.

    Args:
        signals: features; residuals for the kernel of gradients; the cosine kNN graph is used if given and
            ``neighbours`` is set.
        budget: k, samples to keep.
        generator: breaks ties, and draws for the stochastic optimiser.
        already: int64 (m,), rows that count as picked before the first pick, in this order.
        kernel: ``"features"``, or ``"gradients"`` for x = r ⊗ [h, 1], the last layer's gradients, with
            residuals r and features h.
        neighbours: of a sample in the kNN-sparse kernel; None for the dense one.
        optimizer: ``"lazy"`` and ``"naive"`` pick the same; ``"stochastic"`` looks at ⌈N/k · ln 100⌉ random
            samples for each pick; ``"approximate_lazy"`` accepts a gain g ≥ b − 0.1·|b|, with b the highest
            bound.

    Returns:
        Selection in pick order: a smaller coreset is the beginning of a larger one (except with
        ``"stochastic"``); gains are those of f.

    Raises:
        BadInput: a parameter or graph that cannot be used.
        MissingSignal: gradients without residuals.

    Cost:
        Dense: N·k·D multiplications, in products of 64 columns or fewer, and O(N·D) memory; the kernel is
        never written out. kNN-sparse: the graph, then O(k · neighbours); O(N · neighbours) memory.

    References:
        Iyer, Khargoankar, Bilmes and Asanani, Submodular Combinatorial Information Measures with Applications
        in Machine Learning, ALT 2021. Guo, Zhao and Bai, DeepCore, DEXA 2022.
        Upstream: DeepCore@74ec709 deepcore/methods/submodular.py, methods_utils/submodular_function.py,
        submodular_optimizer.py.

    Differences from upstream:
        As in facility_location. Approximate lazy greedy ends (upstream loops for ever: a negative gain is
        never within 0.9 of its bound), and gains leave out s_xx, the same for all.

    >>> x = np.array([[1.0, 0.0], [1.0, 0.2], [1.0, -0.2], [0.0, 1.0], [0.2, 1.0], [-0.2, 1.0]])
    >>> s = Signals(n=6, features=x)
    >>> sorted(graph_cut(s, 2, generator=np.random.default_rng(0)).indices.tolist())
    [1, 4]
    """
    _check(kernel, neighbours, optimizer)
    function: Function
    if neighbours is not None:
        function = SparseGraphCut(nearest_of(signals, kernel, neighbours))
    else:
        function = GraphCut(Kernel.of(signals, kernel))
    return _maximised(function, budget, optimizer, generator, already)


def log_determinant(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: Rows = NO_ROWS,
    kernel: str = "features",
    neighbours: int | None = None,
    optimizer: str = "lazy",
) -> Selection:
    """Keep samples that span the largest volume: greedy log determinant, a determinantal process's mode.

    With s_ij = 0.5 + 0.5 cos(x_i, x_j) and S the kernel among the picks A, the picks maximise greedily

        f(A) = log det(S_A + λI),    gain of x = log(λ + s_xx − s_xA (S_A + λI)⁻¹ s_Ax),    λ = 10⁻⁴

    A copy of a pick gains almost nothing: log 2λ.

    Args:
        signals: features; residuals for the kernel of gradients.
        budget: k, samples to keep.
        generator: breaks ties, and draws for the stochastic optimiser.
        already: int64 (m,), rows that count as picked before the first pick, in this order.
        kernel: ``"features"``, or ``"gradients"`` for x = r ⊗ [h, 1], the last layer's gradients, with
            residuals r and features h.
        neighbours: must be None: a kNN-sparse kernel is not positive definite, hence has no log determinant.
        optimizer: ``"lazy"`` and ``"naive"`` pick the same; ``"stochastic"`` looks at ⌈N/k · ln 100⌉ random
            samples for each pick; ``"approximate_lazy"`` accepts a gain g ≥ b − 0.1·|b|, with b the highest
            bound.

    Returns:
        Selection in pick order: a smaller coreset is the beginning of a larger one (except with
        ``"stochastic"``); gains are those of f.

    Raises:
        BadInput: a parameter that cannot be used; gradients where 8·N·k bytes exceed 4 GiB.
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
        has, and its lazy greedy returns the first k samples. ``upstream=True`` replays both on gradients.

    >>> s = Signals(n=4, features=np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    >>> 3 in log_determinant(s, 2, generator=np.random.default_rng(0)).indices
    True
    """
    _check(kernel, neighbours, optimizer)
    if neighbours is not None:
        raise BadInput(
            f"neighbours = {neighbours}: log_determinant needs the dense kernel; a kNN-sparse one is not "
            "positive definite.",
            remedy="leave neighbours out, or use facility_location or graph_cut",
        )
    total = len(already) + budget
    check_factor(signals.n, total, kernel=kernel)
    tiles = Kernel.of(signals, kernel)
    function = (
        LogDeterminantOfFeatures(tiles.vectors) if kernel == "features" else LogDeterminant(tiles, total)
    )
    return _maximised(function, budget, optimizer, generator, already, unit=1)


def _maximised(
    function: Function,
    budget: int,
    optimizer: str,
    generator: np.random.Generator,
    already: Rows,
    *,
    unit: int = UNIT,
) -> Selection:
    picks, gains = greedy(function, budget, optimizer, generator.random(len(function)), generator, already)
    return Selection.of(picks, gains=gains / unit)
