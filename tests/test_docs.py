"""Pages that repeat the code are up to date; links, commands and examples in all pages hold."""

from __future__ import annotations

import ast
import doctest
import importlib
import itertools
import re
import shlex
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from winnow.flows import FLOWS, cli, presets
from winnow.flows.catalogue import KINDS, dataset_in, deployments
from winnow.flows.forms import NESTED
from winnow.flows.parameters import parsed
from winnow.tasks import registry
from winnow.tasks.registry import Registry

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *DOCS.glob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
        *(ROOT / "tests" / "golden").glob("*.md"),
    ]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


sys.path.insert(0, str(DOCS))
generate, sources = importlib.import_module("generate"), importlib.import_module("sources")


# -- generated pages -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return generate.pages()


def test_generated_pages_are_up_to_date(generated):
    for name, content in generated.items():
        assert (DOCS / name).exists(), f"docs/{name} is missing: run `make docs`"
        assert (DOCS / name).read_text(encoding="utf-8") == content, (
            f"docs/{name} is out of date: run `make docs`"
        )


def test_deployments_show_the_presets_values():
    assert generate.DEPLOYMENTS.read_text(encoding="utf-8") == generate.deployments_file(), (
        "deployments/prefect.yaml is out of date: run `make docs`"
    )
    for name, entry in deployments().items():
        flow, dataset = name.partition("/")[0], dataset_in(entry["parameters"])
        assert set(presets.as_json(flow, dataset)) <= set(entry["parameters"]), name


def test_nothing_generated_is_left_over(generated):
    written = {page.name for page in DOCS.glob("*.md") if generate.NOTICE in page.read_text(encoding="utf-8")}
    assert written == set(generated)


def test_every_method_has_a_section_with_all_its_parameters(generated):
    for kind, found in vars(registry).items():
        if not isinstance(found, Registry) or not found.names():
            continue
        for entry in found:
            section = generated[f"{kind}.md"].partition(f"\n## `{entry.name}`\n")[2].partition("\n## ")[0]
            assert section, f"{kind}.md has no section on {entry.name}"
            target, _ = sources.followed(entry)
            replay = [] if entry.upstream is None else sources.parameters(entry.upstream)
            for parameter in [*sources.parameters(target), *replay]:
                if parameter.name not in (*generate.KINDS[kind].hidden, *entry.fixed):
                    row = re.search(rf"^\| `{parameter.name}` \|.*\| (.*) \|$", section, re.M)
                    assert row, f"{kind}.md: {entry.name} does not show {parameter.name}"
                    assert row[1].strip(), f"{entry.target}: nothing is said about {parameter.name}"


def test_flow_parameters_are_explained(generated):
    for name, target in FLOWS.items():
        section = generated["flows.md"].partition(f"\n## `{name}`\n")[2].partition("\n## ")[0]
        for parameter in sources.parameters(target):
            row = re.search(rf"^\| `{parameter.name}` \|.*\| (.*) \|$", section, re.M)
            assert row, f"flows.md: {name} does not show {parameter.name}"
            assert row[1].strip(), f"{target}: the docstring says nothing about {parameter.name}"


def test_deployments_say_what_they_cost(generated):
    assert len(generate._deployment_notes()) == len(deployments())
    assert all(generate._deployment_notes()), (
        "each entry of prefect.yaml has a comment above it: time, hardware, published result"
    )
    for name in deployments():
        assert f"`{name}`" in generated["deployments.md"]


def test_index_links_every_page():
    linked = {target.partition("#")[0] for target in links(DOCS / "index.md")}
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= linked


# -- links ---------------------------------------------------------------------------------------------------


def without_code(text: str) -> str:
    text = re.sub(r"^(```+).*?^\1", "", text, flags=re.M | re.S)
    return re.sub(r"(`+).+?\1", lambda found: "`" * len(found[0]), text)


def links(page: Path) -> list[str]:
    """Targets of a page's links and pictures, images' own URLs included."""
    text = without_code(page.read_text(encoding="utf-8"))
    return re.findall(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)", text) + re.findall(
        r"^\[[^\]]+\]: +(\S+)", text, re.M
    )


@lru_cache(maxsize=64)
def anchors(page: Path) -> set[str]:
    text = re.sub(r"^(```+).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, re.M):
        slug = generate.slug(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading))
        number = 0
        while (name := slug if not number else f"{slug}-{number}") in found:
            number += 1
        found.add(name)
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_resolve(page):
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue  # the network is not asked
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}, which does not exist"
        assert file.is_relative_to(ROOT)
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name} links to {target}: no such heading"


# -- commands ------------------------------------------------------------------------------------------------


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    """Every command of a page's bash blocks, cut into words."""
    found = []
    for block in blocks(page, "bash"):
        # shlex would take the line's end with a comment
        text = re.sub(r"(^|\s)#[^\n]*", r"\1", block.replace("\\\n", " "))
        lexer = shlex.shlex(text, posix=True, punctuation_chars="&|;\n")
        lexer.whitespace, lexer.commenters = " \t", ""
        lexer.whitespace_split = True
        words: list[str] = []
        for token in [*lexer, "\n"]:
            if set(token) <= set("&|;\n"):
                if words:
                    found.append(words)
                words = []
            elif words or not re.fullmatch(r"[A-Z_]+=\S*", token):  # leading NAME=value
                words.append(token)
    return found


def test_commands_are_read_whole(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\nA=1 winnow ls # all\nwinnow run x -p 'a=[1, 2]' && make docs\n\nprefect y --json "
        "'{\n}'\n```\n"
    )
    assert commands(page) == [
        ["winnow", "ls"],
        ["winnow", "run", "x", "-p", "a=[1, 2]"],
        ["make", "docs"],
        ["prefect", "y", "--json", "{\n}"],
    ]


def check_winnow(words: list[str]) -> None:
    """Commands, options, kinds, flows, deployments and parameters exist."""
    command: Any = typer.main.get_command(cli.app)
    rest = list(words)
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        if not rest or rest[0] == "--help":
            return
        assert rest[0] in command.commands, f"winnow has no command {rest[0]!r}: {shlex.join(words)}"
        command = command.commands[rest.pop(0)]
    options = {
        name: option
        for option in command.params
        for name in (*option.opts, *option.secondary_opts)
        if name.startswith("-")
    }
    plain, given = [], []
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            plain.append(word)
            continue
        if word == "--help":
            return
        assert word in options, f"winnow {command.name} has no option {word}: {shlex.join(words)}"
        if not options[word].is_flag:
            assert rest, shlex.join(words)
            given.append((options[word].name, rest.pop(0)))
    if command.name == "ls" and plain and words[0] == "ls":
        assert plain[0] in KINDS, shlex.join(words)
    if command.name == "run":
        check_run(plain[0], [value for name, value in given if name == "parameter"])


def check_run(name: str, texts: list[str], *, dotted: bool = True) -> None:
    assert name in deployments() or name in FLOWS, f"no deployment or flow {name}"
    accepted = {parameter.name for parameter in sources.parameters(FLOWS[name.partition("/")[0]])}
    for parameter, value in parsed(texts).items():
        assert parameter in accepted, f"{name} has no parameter {parameter}"
        if parameter in NESTED:
            unknown = set(value) - set(NESTED[parameter].model_fields)
            assert not unknown, f"{name}: {parameter} has no field {unknown}"
    assert dotted or not any("." in text.partition("=")[0] for text in texts), f"{texts} are not Prefect's"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_name_what_exists(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for words in commands(page):
        program = words[0].rpartition("/")[2]
        if program == "winnow":
            check_winnow(words[1:])
        elif program == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, shlex.join(words)
        elif program == "prefect" and words[1:3] == ["deployment", "run"]:
            texts = [value for flag, value in itertools.pairwise(words) if flag in ("-p", "--param")]
            check_run(words[3], texts, dotted=False)


@pytest.mark.parametrize(
    "words",
    [
        "lst",
        "ls selector",
        "run elfs/digit",
        "run elfs -p datset=digits",
        "run elfs -p training.epoch=3",
        "cache list",
        "show abcd --row 3",
        "run elfs --quietly",
    ],
)
def test_wrong_commands_are_noticed(words):
    with pytest.raises(AssertionError):
        check_winnow(words.split())


# -- facts that stand in pages written by hand ---------------------------------------------------------------


def test_environment_variables_are_documented():
    code = "\n".join(
        file.read_text(encoding="utf-8")
        for folder in ("tasks", "flows")
        for file in (ROOT / folder).rglob("*.py")
    )
    used = set(re.findall(r"environ(?:\.get)?[\[(]\"(WINNOW_\w+)\"", code))
    listed = set(re.findall(r"^\| `(WINNOW_\w+)`", (DOCS / "deploying.md").read_text(encoding="utf-8"), re.M))
    assert listed == used


def test_kinds_of_artifacts_are_documented():
    from winnow.tasks.columns import KINDS

    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", (DOCS / "store.md").read_text(encoding="utf-8"), re.M))
    for kind, columns in KINDS.items():
        named = set(re.findall(r"`(\w+)`", rows[kind]))
        assert {column.removesuffix("?") for column in columns} == named, kind


def test_grids_of_the_search_are_documented():
    from winnow.flows.presets import grid

    text = (DOCS / "elfs.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d+) % \| ([\d., ]+) \|$", text, re.M))
    assert len(rows) == 5
    for percent, values in rows.items():
        assert tuple(map(float, values.split(", "))) == grid("elfs", "", int(percent) / 100)["mis_ratio"]


# -- examples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_examples_of_pages_run(page):
    if generate.NOTICE in page.read_text(encoding="utf-8"):
        pytest.skip("the docstrings' own examples: see below")
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        if block.startswith(">>>"):
            run_examples({page.name: block}, names)
        else:
            exec(compile(block, page.name, "exec"), names)
            run_examples(
                {
                    name: value.__doc__
                    for name, value in names.items()
                    if getattr(value, "__doc__", None) and callable(value)
                },
                names,
            )


def run_examples(
    texts: dict[str, str], names: dict[str, Any], flags: int = doctest.NORMALIZE_WHITESPACE
) -> None:
    runner = doctest.DocTestRunner(verbose=False, optionflags=flags)
    for name, text in texts.items():
        if ">>>" in text:
            runner.run(doctest.DocTestParser().get_doctest(text, names, name, name, 0), clear_globs=False)
    assert not runner.failures, f"{runner.failures} examples fail"


def examples(file: Path) -> dict[str, str]:
    """Docstrings of a file that have examples, those of tasks, flows and methods included."""
    texts = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            texts[f"{getattr(node, 'name', '')}:{getattr(node, 'lineno', 1)}"] = ast.get_docstring(node) or ""
    return {name: text for name, text in texts.items() if ">>>" in text}


def modules_with_examples() -> dict[str, Path]:
    files = [file for folder in ("winnow", "tasks", "flows") for file in (ROOT / folder).rglob("*.py")]
    modules = {}
    for file in sorted(file for file in files if examples(file)):
        path = file.relative_to(ROOT).with_suffix("").parts
        modules[".".join(("winnow", *(part for part in path if part not in ("winnow", "__init__"))))] = file
    return modules


@pytest.mark.parametrize(("module", "file"), modules_with_examples().items(), ids=modules_with_examples())
def test_examples_of_modules_run(module, file, empty_store):
    loaded = importlib.import_module(module)
    names = {name: getattr(loaded, name) for name in getattr(loaded, "__all__", ())} | vars(loaded)
    for name, text in examples(file).items():
        run_examples({f"{module}:{name}": text}, dict(names), flags=0)
