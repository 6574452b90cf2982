"""Selectors: which samples to keep. One line a method; each is loaded when first used."""

from tasks.registry import selectors

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
