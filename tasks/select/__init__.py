"""Selectors: which samples to keep. One line a method; each is loaded when first used."""

from tasks.registry import selectors

# what refuses a problem that is too large before anything is computed
_DENSE, _FACTOR, _CRAIG = (
    "tasks.select.similarity:check_dense",
    "tasks.select.submodular:check_factor",
    "tasks.select.craig:check_size",
)

selectors.add("full", "tasks.select.uniform:full")
selectors.add("random", "tasks.select.uniform:random")
selectors.add("top", "tasks.select.top:top", needs=("scores",))
selectors.add("ccs", "tasks.select.ccs:ccs", needs=("scores",))
selectors.add("elfs", "tasks.select.elfs:elfs", needs=("scores",))
selectors.add("aum", "tasks.select.top:aum", needs=("scores",))
selectors.add("el2n", "tasks.select.top:el2n", needs=("scores",))
selectors.add("forgetting", "tasks.select.top:forgetting", needs=("scores",))
selectors.add("grand", "tasks.select.top:grand", needs=("scores",))
selectors.add("moderate", "tasks.select.moderate:moderate", needs=("features", "labels"))
selectors.add("prototypicality", "tasks.select.prototypicality:prototypicality", needs=("features",))
selectors.add("badge", "tasks.select.badge:badge", needs=("residuals", "features"))
selectors.add("d2", "tasks.select.d2:d2", needs=("scores",), uses=("features", "graph", "labels"))
selectors.add("gradmatch", "tasks.select.gradmatch:gradmatch", needs=("residuals", "features"))
selectors.add("glister", "tasks.select.glister:glister", needs=("residuals", "features"), uses=("probabilities",))
selectors.add("deepfool", "tasks.select.deepfool:deepfool", needs=("scores",))
selectors.add(
    "facility_location", "tasks.select.submodular:facility_location", needs=("features",), uses=("residuals", "graph"), limit=_DENSE
)
selectors.add("graph_cut", "tasks.select.submodular:graph_cut", needs=("features",), uses=("residuals", "graph"))
selectors.add("log_determinant", "tasks.select.submodular:log_determinant", needs=("features",), uses=("residuals",), limit=_FACTOR)
selectors.add("craig", "tasks.select.craig:craig", needs=("residuals", "features"), uses=("labels",), limit=_CRAIG)
selectors.add("k_center", "tasks.select.k_center:k_center", needs=("features",))
selectors.add("herding", "tasks.select.herding:herding", needs=("features",))
selectors.add("contextual_diversity", "tasks.select.contextual_diversity:contextual_diversity", needs=("probabilities",))
selectors.add("uncertainty", "tasks.select.uncertainty:uncertainty", needs=("probabilities",), uses=("scores",))
selectors.add("cal", "tasks.select.cal:cal", needs=("features", "probabilities"), uses=("graph",))
selectors.add("semdedup", "tasks.select.semdedup:semdedup", needs=("features",))
selectors.add("zcore", "tasks.select.zcore:zcore", needs=("features",))
