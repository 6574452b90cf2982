"""Selectors: which samples to keep. One line a method; each is loaded when first used."""

from tasks.registry import selectors

selectors.add("full", "tasks.select.uniform:full")
selectors.add("random", "tasks.select.uniform:random")
selectors.add("top", "tasks.select.top:top", needs=("scores",))
selectors.add("ccs", "tasks.select.ccs:ccs", needs=("scores",))
selectors.add("elfs", "tasks.select.elfs:elfs", needs=("scores",))
