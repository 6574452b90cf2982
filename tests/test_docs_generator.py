"""What the generator of docs/ makes of docstrings and registry entries."""

from __future__ import annotations

import doctest
import importlib
import re
import sys
from pathlib import Path

import pytest

from winnow.flows import FLOWS
from winnow.tasks import registry
from winnow.tasks.registry import Entry, SelectorEntry, docstring

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs"))
generate, sources = importlib.import_module("generate"), importlib.import_module("sources")


def shown(text: str) -> list[str]:
    return generate.paragraphs(sources.parse(text), {"aum"})


@pytest.mark.parametrize(
    "equation", ["μ_i = (1/E) Σ_t p_t(y_i)", "σ_i = sqrt(x)", "x is the mean.", "argmax"]
)
def test_a_symbol_keeps_its_case(equation):
    assert shown(f"Summary.\n\n{equation}\n\nArgs, returns and errors as in :func:`aum`.") == [
        equation,
        "Returns and errors as in [`aum`](#aum).",
    ]
    assert shown(f"Summary.\n\nArgs as in :func:`aum`; {equation}") == [equation]


def test_a_sentence_goes_on_after_a_display():
    text = "Summary.\n\nThe samples of largest\n\n    s_i = Σ_j a_ij\n\nare kept: those in between."
    assert shown(text) == [
        "The samples of largest",
        "```text\ns_i = Σ_j a_ij\n```",
        "are kept: those in between.",
    ]


@pytest.mark.parametrize(
    ("paragraph", "rest"),
    [
        ("Args as in :func:`aum`.", []),
        ("Args and errors as in :func:`aum`.", ["Errors as in [`aum`](#aum)."]),
        ("Args, errors and references as in :func:`aum`.", ["Errors and references as in [`aum`](#aum)."]),
        ("Args as in :func:`aum`; ``features`` (n, 8).", ["`features` (n, 8)."]),
        ("Args and errors as in :func:`winnow.scores.aum`.", ["Errors as in [`aum`](#aum)."]),
        ("argsort of the scores.", ["argsort of the scores."]),
    ],
)
def test_pointers_to_arguments_are_cut(paragraph, rest):
    assert shown(f"Summary.\n\n{paragraph}") == rest


METHOD = '''
"""A module."""

def top(signals, budget, *, score: str = "el2n", hardest: bool = True, generator):
    """Keep the hardest samples by one score.

    Args:
        score: name of the score.
        hardest: False keeps the easiest.

    Returns:
        Selection.
    """

def published(signals, budget, *, score: str = "el2n", batch: int = 256, generator):
    """The published loop, which
    divides by the batch.

    Args as in :func:`method_of_test_docs.sums`; more about it.
    """

def sums(batch: int):
    """Sums over batches.

    Args:
        batch: size of the batches.
    """
'''


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """A module with a method and the replay of its published code."""
    (tmp_path / "method_of_test_docs.py").write_text(METHOD, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return "method_of_test_docs"


def test_a_name_with_fixed_arguments_has_a_section_of_its_own(module):
    about = "Keep the samples of smallest AUM.\n\nLow is hard.\n\nReferences:\n    Pleiss et al., 2020."
    entry = SelectorEntry(
        "aum",
        f"{module}:top",
        fixed={"score": "aum"},
        about=about,
        needs=("scores",),
        limit=f"{module}:limit",
    )
    section = generate.method_section(entry, generate.KINDS["selectors"], {"top", "aum"})
    assert section.split("\n\n") == [
        "## `aum`",
        "Keep the samples of smallest AUM.",
        f"*needs* `scores` · [{module}.py](../{module}.py)",
        '[`top`](#top) with `score = "aum"`.',
        "Low is hard.",
        "| parameter | type | default | meaning |\n| --- | --- | --- | --- |\n"
        "| `hardest` | bool | `True` | False keeps the easiest. |",
        "**References:** Pleiss et al., 2020.",
    ]


def test_a_replay_is_described_with_the_parameters_that_only_it_has(module):
    entry = SelectorEntry("top", f"{module}:top", upstream=f"{module}:published")
    section = generate.method_section(entry, generate.KINDS["selectors"], {"top"})
    assert section.partition("**Upstream:** ")[2].split("\n\n") == [
        f"`upstream=True` replays the published code ([{module}.py](../{module}.py)). "
        "The published loop, which divides by the batch.",
        "| parameter | type | default | meaning |\n| --- | --- | --- | --- |\n"
        "| `batch` | int | `256` | size of the batches. |",
    ]


def test_symbols_in_pages_are_those_of_the_docstrings():
    """No page turns a μ into a Μ or a σ into a Σ: symbols with a Greek capital stand in the docstring."""
    pages, capitals = generate.pages(), r"[Α-Ω]\w*"
    sections = [
        (f"{kind}.md", entry.name, docstrings(entry))
        for kind in generate.KINDS
        for entry in getattr(registry, kind)
    ]
    sections += [("flows.md", name, [docstring(target)]) for name, target in FLOWS.items()]
    for page, name, texts in sections:
        section = pages[page].partition(f"\n## `{name}`\n")[2].partition("\n## ")[0]
        symbols = set(re.findall(capitals, section.replace("\\", "")))
        assert symbols <= set(re.findall(capitals, " ".join(texts))), f"{page}: {name}"


def docstrings(entry: Entry) -> list[str]:
    target, _ = sources.followed(entry)
    targets = {entry.target, target, *filter(None, [entry.upstream])}
    return [entry.doc, *map(docstring, targets), *sources.meanings(target).values()]


@pytest.mark.parametrize("text", ["a_b and max_{j} < 3 * 4", "``code_with_*``", "_private"])
def test_prose_is_not_read_as_markup(text):
    shown = generate.prose(text)
    plain = re.sub(r"\\([*_<])", r"\1", shown).replace("`", "")
    assert plain == text.replace("`", "")
    outside = re.sub(r"`[^`]*`", "", shown)
    assert not re.search(r"(?<!\\)[*<]|(?<![\\\w])_", outside)


@pytest.mark.parametrize("module", [generate, sources], ids=lambda module: module.__name__)
def test_examples_of_the_generator_run(module):
    assert doctest.testmod(module).failed == 0
