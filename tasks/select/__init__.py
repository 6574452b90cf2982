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


selectors.add("full", ".uniform:full")
selectors.add("random", ".uniform:random")
selectors.add("top", ".top:top", needs=("scores",))
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
selectors.add("ccs", ".ccs:ccs", needs=("scores",), upstream=".upstream.ccs:ccs")
selectors.add("elfs", ".elfs:elfs", needs=("scores",), labels="pseudo", upstream=".upstream.elfs:elfs")
selectors.add(
    "moderate", ".moderate:moderate", needs=("features", "labels"), upstream=".upstream.moderate:moderate"
)
selectors.add("prototypicality", ".prototypicality:prototypicality", needs=("features",))
selectors.add("badge", ".badge:badge", needs=("residuals", "features"))
selectors.add(
    "d2", ".d2:d2", needs=("scores",), uses=("features", "graph", "labels"), upstream=".upstream.d2:d2"
)
selectors.add(
    "gradmatch",
    ".gradmatch:gradmatch",
    needs=("residuals", "features"),
    upstream=".upstream.gradmatch:gradmatch",
)
selectors.add(
    "glister",
    ".glister:glister",
    version=2,  # 1 let rounding decide between copies of a sample
    needs=("residuals", "features"),
    uses=("probabilities",),
    upstream=".upstream.glister:glister",
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
    ".submodular:facility_location",
    needs=("features",),
    uses=("residuals", "graph"),
    limit=_DENSE,
    upstream=".upstream.submodular:facility_location",
)
selectors.add(
    "graph_cut",
    ".submodular:graph_cut",
    needs=("features",),
    uses=("residuals", "graph"),
    upstream=".upstream.submodular:graph_cut",
)
selectors.add(
    "log_determinant",
    ".submodular:log_determinant",
    needs=("features",),
    uses=("residuals",),
    limit=_FACTOR,
    upstream=".upstream.submodular:log_determinant",
)
selectors.add(
    "craig",
    ".craig:craig",
    needs=("residuals", "features"),
    uses=("labels",),
    limit=_CRAIG,
    upstream=".upstream.craig:craig",
)
selectors.add("k_center", ".k_center:k_center", needs=("features",), upstream=".upstream.k_center:k_center")
selectors.add("herding", ".herding:herding", needs=("features",), upstream=".upstream.herding:herding")
selectors.add(
    "contextual_diversity",
    ".contextual_diversity:contextual_diversity",
    needs=("probabilities",),
    upstream=".upstream.contextual_diversity:contextual_diversity",
)
selectors.add(
    "uncertainty",
    ".uncertainty:uncertainty",
    needs=("probabilities",),
    uses=("scores",),
    upstream=".upstream.uncertainty:uncertainty",
)
selectors.add(
    "cal", ".cal:cal", needs=("features", "probabilities"), uses=("graph",), upstream=".upstream.cal:cal"
)
selectors.add("semdedup", ".semdedup:semdedup", needs=("features",))
selectors.add("zcore", ".zcore:zcore", needs=("features",))
