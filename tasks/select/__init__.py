"""Selectors: which samples to keep. One line a method; each is loaded when first used."""

from winnow.tasks.registry import selectors

# what refuses a problem that is too large before anything is computed
_DENSE, _FACTOR, _CRAIG = (".similarity:check_dense", ".submodular:check_factor", ".craig:check_size")

selectors.add("full", ".uniform:full")
selectors.add("random", ".uniform:random")
selectors.add("top", ".top:top", needs=("scores",))
selectors.add("ccs", ".ccs:ccs", needs=("scores",))
selectors.add("elfs", ".elfs:elfs", needs=("scores",), labels="pseudo")
selectors.add("aum", ".top:aum", needs=("scores",))
selectors.add("el2n", ".top:el2n", needs=("scores",))
selectors.add("forgetting", ".top:forgetting", needs=("scores",))
selectors.add("grand", ".top:grand", needs=("scores",))
selectors.add(
    "moderate", ".moderate:moderate", needs=("features", "labels"), upstream=".upstream.moderate:moderate"
)
selectors.add("prototypicality", ".prototypicality:prototypicality", needs=("features",))
selectors.add("badge", ".badge:badge", needs=("residuals", "features"))
selectors.add(
    "d2", ".d2:d2", needs=("scores",), uses=("features", "graph", "labels"), upstream=".upstream.d2:d2"
)
selectors.add("gradmatch", ".gradmatch:gradmatch", needs=("residuals", "features"))
selectors.add("glister", ".glister:glister", needs=("residuals", "features"), uses=("probabilities",))
selectors.add(
    "deepfool",
    ".top:top",
    needs=("scores",),
    fixed={"score": "deepfool", "higher_is": "easier"},
    about="""Keep the samples closest to the decision boundary.

References:
    Ducoffe and Precioso, Adversarial Active Learning for Deep Networks: a Margin Based Approach, 2018.
    Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/deepfool.py.

>>> s = Signals(n=3, scores={"deepfool": np.array([3.0, 1.0, 2.0])})
>>> selectors.get("deepfool")(s, 2, generator=np.random.default_rng(0)).indices.tolist()
[1, 2]""",
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
selectors.add("k_center", ".k_center:k_center", needs=("features",))
selectors.add("herding", ".herding:herding", needs=("features",))
selectors.add("contextual_diversity", ".contextual_diversity:contextual_diversity", needs=("probabilities",))
selectors.add(
    "uncertainty",
    ".uncertainty:uncertainty",
    needs=("probabilities",),
    uses=("scores",),
    upstream=".upstream.uncertainty:uncertainty",
)
selectors.add("cal", ".cal:cal", needs=("features", "probabilities"), uses=("graph",))
selectors.add("semdedup", ".semdedup:semdedup", needs=("features",))
selectors.add("zcore", ".zcore:zcore", needs=("features",))
