"""Selectors: which samples to keep. One line per method; each is loaded when first used."""

from winnow.tasks.registry import selectors

# these refuse too large a problem before anything is computed
_DENSE, _FACTOR, _CRAIG = (".similarity:check_dense", ".submodular:check_factor", ".craig:check_size")


def _top(score: str, kept: str, higher_is: str, *references: str) -> None:
    """Register ``top`` by a paper's score under the score's name."""
    example = (
        f'>>> s = Signals(n=3, scores={{"{score}": np.array([3.0, 1.0, 2.0])}})\n'
        f'>>> selectors.get("{score}")(s, 1).indices.tolist()\n[{0 if higher_is == "harder" else 1}]'
    )
    about = "\n".join([f"Keep the samples {kept}.", "\nReferences:", *(f"    {r}" for r in references)])
    fixed = {"score": score, "higher_is": higher_is}
    selectors.add(score, ".top:top", needs=("scores",), fixed=fixed, about=f"{about}\n\n{example}")


selectors.add("full", ".uniform")
selectors.add("random", ".uniform")
selectors.add("top", needs=("scores",))
_top(
    "aum",
    "of smallest area under the margin",
    "easier",
    "Pleiss, Zhang, Elenberg and Weinberger, Identifying Mislabeled Data using the Area Under the Margin "
    "Ranking, NeurIPS 2020.",
    "Upstream: Coverage-centric-coreset-selection@b37f166 core/data/Coreset.py score_monotonic_selection "
    "(accumulated_margin).",
)
_DIET = (
    "Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet: Finding Important Examples Early in "
    "Training, NeurIPS 2021."
)
_top("el2n", "of longest error vector", "harder", _DIET)
_top(
    "grand",
    "of longest gradient",
    "harder",
    _DIET,
    "Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/grand.py.",
)
_top(
    "forgetting",
    "that were forgotten most often",
    "harder",
    "Toneva et al., An Empirical Study of Example Forgetting during Deep Neural Network Learning, ICLR 2019.",
)
selectors.add("ccs", needs=("scores",), upstream=True)
selectors.add("elfs", needs=("scores",), labels="pseudo", upstream=True)
selectors.add("moderate", needs=("features", "labels"), upstream=True)
selectors.add("prototypicality", needs=("features",))
selectors.add("badge", needs=("residuals", "features"))
selectors.add("d2", needs=("scores",), uses=("features", "graph", "labels"), upstream=True)
selectors.add("gradmatch", needs=("residuals", "features"), upstream=True)
selectors.add(
    "glister",
    version=2,  # 1 let rounding decide between copies of a sample
    needs=("residuals", "features"),
    uses=("probabilities",),
    upstream=True,
)
_top(
    "deepfool",
    "closest to the decision boundary",
    "easier",
    "Ducoffe and Precioso, Adversarial Active Learning for Deep Networks: a Margin Based Approach, 2018.",
    "Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/deepfool.py.",
)
selectors.add(
    "facility_location",
    ".submodular",
    needs=("features",),
    uses=("residuals", "graph"),
    limit=_DENSE,
    upstream=True,
)
selectors.add("graph_cut", ".submodular", needs=("features",), uses=("residuals", "graph"), upstream=True)
selectors.add(
    "log_determinant", ".submodular", needs=("features",), uses=("residuals",), limit=_FACTOR, upstream=True
)
selectors.add("craig", needs=("residuals", "features"), uses=("labels",), limit=_CRAIG, upstream=True)
selectors.add("k_center", needs=("features",), upstream=True)
selectors.add("herding", needs=("features",), upstream=True)
selectors.add("contextual_diversity", needs=("probabilities",), upstream=True)
selectors.add("uncertainty", needs=("probabilities",), uses=("scores",), upstream=True)
selectors.add("cal", needs=("features", "probabilities"), uses=("graph",), upstream=True)
selectors.add("semdedup", needs=("features",))
selectors.add("zcore", needs=("features",))
