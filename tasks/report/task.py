"""Tasks of the report stage: everything that a run found, as a table, a Prefect artifact and a self-contained HTML file."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from winnow.tasks import provenance
from winnow.tasks.artifacts import Artifact, write
from winnow.tasks.cache import cached_task
from winnow.tasks.data.task import open_split, rows_of
from winnow.tasks.progress import progress
from winnow.tasks.store import store

if TYPE_CHECKING:
    from winnow.tasks.report.html import Section
    from winnow.tasks.report.tables import Table

__all__ = ["draw", "draw_comparison", "publish"]

log = logging.getLogger("winnow.tasks.report")


BEST_EPOCH = (
    "The published code reports the best test accuracy of a run, which chooses the epoch by test labels."
)

REPORT = (
    "winnow.tasks.report.bars",
    "winnow.tasks.report.curves",
    "winnow.tasks.report.html",
    "winnow.tasks.report.montage",
    "winnow.tasks.report.verdicts",
    "winnow.tasks.train.metrics",
)


@cached_task(version="3", name="report", run_name="report-{dataset}", modules=REPORT)
def draw(
    title: str,
    dataset: str,
    train: Artifact,
    method: str,
    *,
    trials: list[tuple[str, float, int, Artifact]],
    coresets: list[tuple[str, float, Artifact]],
    scores: Artifact,
    score: str,
    history: Artifact,
    params: dict[float, dict[str, Any]],
    settings: dict[str, Any],
    searches: dict[float, dict[str, Any]] | None = None,
    pseudo_labels: Artifact | None = None,
    kmeans: Artifact | None = None,
    head_losses: Artifact | None = None,
) -> dict[str, Artifact]:
    """The trials as a table, and the report of a run: its HTML page and its Markdown for the UI.

    Args:
        title: of the report.
        dataset: its name.
        train: the samples that were selected from.
        method: the selector that the run is about; the others are its baselines.
        trials: method, fraction, seed and metrics of every training.
        coresets: method, fraction and annotated coreset, one each.
        scores: of the samples; ``score`` is the one selected by.
        history: of the training that the scores were recorded in.
        params: the selector's parameters by fraction.
        settings: all that the run was made with.
        searches: by fraction: ``name`` of what was searched, ``tried`` values and their accuracies, the
            ``chosen`` one, ``judged_on``.
        pseudo_labels: clusters in place of labels.
        kmeans: their baseline.
        head_losses: of the cluster heads.

    Returns:
        ``trials`` and ``report``.
    """
    from winnow.tasks.report.curves import accuracy_curve
    from winnow.tasks.report.statistics import summarise
    from winnow.tasks.report.tables import accuracy_table, cost_table, difference_table, percent
    from winnow.tasks.report.verdicts import verdicts

    with progress("report"):
        runs, where = _measured(trials, coresets)
        rows = summarise(runs)
        found = verdicts(rows, method=method)
        table = _trials_table(runs, dataset, found)
        sections = [
            _section("Accuracy", "", [accuracy_curve(rows)], difference_table(rows)),
            _section("Best epoch", BEST_EPOCH, [], accuracy_table(rows, accuracy="best")),
            *_clustering_sections(train, pseudo_labels, kmeans, head_losses),
            *_search_sections(searches or {}),
            *_selection_sections(
                train,
                pseudo_labels,
                scores,
                score,
                [(f, kept) for name, f, kept in coresets if name == method],
                params,
            ),
            _section("Proxy training", "", [_training([("proxy", history)])]),
            _section(
                "Cost",
                "Measured when each training ran; a cached one keeps its figure.",
                [],
                cost_table(rows),
            ),
        ]
        chosen = {
            f"{percent(f)} kept": ", ".join(f"{name} {value}" for name, value in some.items())
            for f, some in params.items()
        }
        artifacts = {"samples": train, "scores": scores, "trials": table}
        artifacts |= {} if pseudo_labels is None else {"pseudo-labels": pseudo_labels}
        artifacts |= {f"coreset {name} {fraction:g}": coreset for name, fraction, coreset in coresets}
        main = accuracy_table(rows)
        return {
            "trials": table,
            "report": _pages(title, train, where, found, main, rows, sections, chosen, settings, artifacts),
        }


@cached_task(version="2", name="comparison", run_name="comparison-{dataset}", modules=REPORT)
def draw_comparison(
    title: str,
    dataset: str,
    train: Artifact,
    *,
    trials: list[tuple[str, float, int, Artifact]],
    coresets: list[tuple[str, float, int, Artifact]],
    histories: dict[int, Artifact],
    params: dict[str, dict[float, dict[str, Any]]],
    settings: dict[str, Any],
) -> dict[str, Artifact]:
    """Many methods side by side: one table, ranks and costs, differences from random, one figure.

    Args:
        title: of the report.
        dataset: its name.
        train: the samples that were selected from.
        trials: method, fraction, seed and metrics of every training.
        coresets: method, fraction, seed and annotated coreset.
        histories: of the proxies' trainings, by seed.
        params: of the selectors, by name and fraction.
        settings: all that the run was made with.

    Returns:
        ``trials`` and ``report``.
    """
    from winnow.tasks.report.curves import accuracy_curve
    from winnow.tasks.report.statistics import mean_ranks, summarise
    from winnow.tasks.report.tables import accuracy_table, comparison_table, cost_table, difference_table
    from winnow.tasks.report.verdicts import verdicts

    with progress("report"):
        runs, where = _measured(trials, coresets)
        ranks = mean_ranks(runs)
        rows = [row | {"rank": ranks.get(row["method"])} for row in summarise(runs)]
        found = verdicts(rows)
        table = _trials_table(runs, dataset, found, compared=True)
        sections = [
            _section("Accuracy", "", [accuracy_curve(rows)], difference_table(rows)),
            _section("Best epoch", BEST_EPOCH, [], accuracy_table(rows, accuracy="best")),
            _section(
                "Proxy training",
                "",
                [_training([(f"seed {seed}", history) for seed, history in histories.items()])],
            ),
            _section(
                "Cost",
                "Measured when each training ran; a cached one keeps its figure.",
                [],
                cost_table(rows),
            ),
        ]
        chosen = {
            f"{name}, {fraction:g} kept": ", ".join(f"{key} {value}" for key, value in some.items())
            for name, by_fraction in params.items()
            for fraction, some in by_fraction.items()
            if some
        }
        artifacts = {"samples": train, "trials": table}
        main = comparison_table(runs)
        return {
            "trials": table,
            "report": _pages(title, train, where, found, main, rows, sections, chosen, settings, artifacts),
        }


def _measured(
    trials: list[tuple[str, float, int, Artifact]], coresets: Iterable[tuple[Any, ...]]
) -> tuple[list[dict[str, Any]], str]:
    """One row a training, with what it and its selection took when they ran, and the device that most of them ran on."""
    steps = [provenance.maker(trial[3].digest) or {} for trial in trials]
    selecting: dict[tuple[str, float], float] = {}
    for name, fraction, *_, coreset in coresets:
        annotated = (provenance.maker(coreset.digest) or {"inputs": {}})["inputs"].get("coreset")
        selected = provenance.maker(annotated["artifact"]) if annotated is not None else None
        if selected is not None:
            selecting[name, fraction] = selected["seconds"]
    runs = [
        _trial(*trial, step.get("seconds"), selecting.get(trial[:2]))
        for trial, step in zip(trials, steps, strict=True)
    ]
    devices = Counter(step["device"] for step in steps if "device" in step)
    return runs, next((name for name, _ in devices.most_common(1)), "")


def _trials_table(
    runs: list[dict[str, Any]], dataset: str, verdicts: Sequence[str], *, compared: bool = False
) -> Artifact:
    """The trainings as an artifact; wall-clock times stay out of it, so that equal results have equal digests."""
    columns = {name: [run[name] for run in runs] for name in runs[0] if not name.endswith("seconds")}
    return write(
        "table", columns, facts={"dataset": dataset, "verdicts": list(verdicts), "compared": compared}
    )


def _pages(
    title: str,
    train: Artifact,
    device: str,
    verdicts: Sequence[str],
    main: Table,
    rows: list[dict[str, Any]],
    sections: list[Section | None],
    chosen: dict[str, str],
    settings: dict[str, Any],
    artifacts: dict[str, Artifact],
) -> Artifact:
    """The report as HTML, as Markdown for the UI, its main table as Markdown, its numbers as CSV."""
    from winnow.tasks.report.html import Report, markdown_report, render_report
    from winnow.tasks.report.tables import to_csv, to_markdown

    facts = [f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", f"{train.rows:,} training samples", device]
    report = Report(
        title=title,
        subtitle=" · ".join(fact for fact in facts if fact),
        verdicts=tuple(verdicts),
        table=main,
        sections=[section for section in sections if section is not None],
        provenance={
            **({"Selection": chosen} if chosen else {}),
            "Parameters": settings,
            "Artifacts": {name: artifact.digest for name, artifact in artifacts.items()},
            "Versions": provenance.library_versions(),
        },
        csv=to_csv(rows),
    )
    pages = {
        "html": render_report(report),
        "markdown": markdown_report(report),
        "md": to_markdown(main),
        "csv": report.csv,
    }
    return write("report", {"name": list(pages), "content": [page.encode() for page in pages.values()]})


@task(name="publish", task_run_name="publish-{name}", cache_policy=NO_CACHE)
def publish(name: str, drawn: dict[str, Artifact], settings: dict[str, Any]) -> Artifact:
    """Put the HTML file into the store's reports and the report into Prefect's UI; returns the trials."""
    from prefect.artifacts import create_markdown_artifact

    trials, columns = drawn["trials"], drawn["report"].table().to_pydict()
    pages = dict(zip(columns["name"], columns["content"], strict=True))
    key = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip(
        "-"
    )  # the UI keeps the versions of a key
    stem = f"reports/{key}-{trials.digest[:8]}"
    file = f"{stem}.html"
    for suffix in ("html", "csv", "md"):
        store().write(f"{stem}.{suffix}", pages[suffix])
    store().write(
        f"results/{trials.digest}.json",
        json.dumps({"digest": trials.digest, "report": file, "settings": settings}, indent=1).encode(),
    )
    create_markdown_artifact(
        pages["markdown"].decode(),
        key=key,
        description="Result table, accuracy curve, clustering, selection, provenance",
    )
    for verdict in trials.facts["verdicts"]:
        log.info("%s", verdict)
    log.info("report: %s", store().address(file))
    return Artifact(**{**trials.to_dict(), "notes": {**trials.notes, "report": file}})


def _trial(
    method: str,
    fraction: float,
    seed: int,
    metrics: Artifact,
    seconds: float | None,
    selection_seconds: float | None,
) -> dict[str, Any]:
    return {
        "method": method,
        "fraction": fraction,
        "seed": seed,
        "samples": metrics.facts["samples"],
        "last_accuracy": metrics.facts["last_accuracy"],
        "best_accuracy": metrics.facts["best_accuracy"],
        "metrics": metrics.digest,
        "seconds": seconds,
        "selection_seconds": selection_seconds,
    }


def _section(heading: str, text: str, pictures: list[Any], table: Any = None) -> Section | None:
    from winnow.tasks.report.html import Section

    return Section(heading, text, pictures, table) if pictures or table is not None else None


def _clustering_sections(
    train: Artifact, pseudo_labels: Artifact | None, kmeans: Artifact | None, head_losses: Artifact | None
) -> list[Section | None]:
    """Agreement of pseudo-labels with true labels, where these exist: reported, never used."""
    from winnow.tasks.report.bars import clustering_bars
    from winnow.tasks.report.curves import head_losses as draw_losses
    from winnow.tasks.train.metrics import clustering_metrics

    if pseudo_labels is None:
        return []
    pictures = []
    truth = open_split(train).truth
    if truth is not None:
        clusterings = {"pseudo-labels": pseudo_labels} | ({} if kmeans is None else {"k-means": kmeans})
        pictures.append(
            clustering_bars(
                {
                    name: {
                        key: value / 100
                        for key, value in clustering_metrics(labels.numpy("cluster"), truth).items()
                    }
                    for name, labels in clusterings.items()
                }
            )
        )
    if head_losses is not None:
        losses = head_losses.numpy("loss").reshape(head_losses.facts["epochs"], head_losses.facts["heads"])
        pictures.append(draw_losses(losses, head_losses.facts["head"]))
    used = pseudo_labels.facts.get("used")
    text = [
        f"{used} of {pseudo_labels.facts['classes']} clusters are used."
        if used is not None
        else "The pseudo-labels were brought along."
    ]
    if head_losses is not None:
        if pseudo_labels.facts["oracle"]:
            text.append(
                f"Epoch {pseudo_labels.facts['epoch'] + 1} was chosen by TEST LABELS, as the published code "
                "does: not a label-free result."
            )
        else:
            text.append(
                f"Head and epoch ({pseudo_labels.facts['epoch'] + 1}) were chosen by training loss; true "
                "labels were not seen."
            )
    return [_section("Pseudo-labels", " ".join(text), pictures)]


def _search_sections(searches: dict[float, dict[str, Any]]) -> list[Section | None]:
    """One section a search: a curve over numbers, a table over settings of several parameters."""
    from winnow.tasks.report.curves import search_curve
    from winnow.tasks.report.tables import Table, mean_sd, percent

    sections = []
    for fraction, search in searches.items():
        tried, chosen = search["tried"], search["chosen"]
        one = isinstance(chosen, int | float)
        name = f"{search['name'] if one else 'the parameters'} at {percent(fraction)} kept"
        picture, table = [], None
        if one:
            picture = [
                search_curve(
                    list(tried), list(tried.values()), chosen, name=name, judged_on=search["judged_on"]
                )
            ]
        else:
            best_first = sorted(
                tried, key=lambda value: (value != chosen, -sum(tried[value]) / len(tried[value]))
            )
            cells = tuple((value, mean_sd(*_mean_sd(tried[value]))) for value in best_first)
            table = Table(
                (search["name"], f"accuracy on {search['judged_on']} (%)"),
                cells,
                "The chosen one comes first.",
                frozenset({(0, 1)}),
            )
        sections.append(_section(f"Search for {name}", search["text"], picture, table))
    return sections


def _mean_sd(values: list[float]) -> tuple[float, float | None]:
    import statistics

    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _selection_sections(
    train: Artifact,
    pseudo_labels: Artifact | None,
    scores: Artifact,
    score: str,
    coresets: list[tuple[float, Artifact]],
    params: dict[float, dict[str, Any]],
) -> list[Section | None]:
    from winnow.tasks.report.bars import class_balance, score_histogram
    from winnow.tasks.report.montage import selection_montage
    from winnow.tasks.report.tables import percent
    from winnow.tasks.score import higher_is

    split = open_split(train)
    ids, values, higher = scores.numpy("id"), scores.numpy(score), higher_is(score)
    assert higher is not None, score
    ours = sorted(coresets, key=lambda each: each[0])
    kept = {}
    for fraction, coreset in ours:
        cut = params.get(fraction, {}).get("mis_ratio")
        kept[f"{percent(fraction)} kept" + ("" if cut is None else f", mis_ratio {cut:g}")] = rows_of(
            ids, coreset.numpy("id")
        )
    smallest, coreset = ours[0]
    found = coreset.numpy("label")
    if pseudo_labels is not None:
        shown = pseudo_labels.numpy("cluster")[rows_of(pseudo_labels.numpy("id"), ids)]
        names = [f"cluster {i}" for i in range(int(shown.max()) + 1)]
        note = " The numbers under the images are pseudo-labels, which are not class names."
    else:
        shown, names, note = split.labels()[rows_of(split.ids, ids)], list(split.classes), ""
    pictures = [
        score_histogram(
            values, kept, score_name=score.upper() if score == "aum" else score, higher_is=higher
        ),
        class_balance(found, split.classes, dataset=split.truth),
        selection_montage(
            split.images.read,
            rows_of(ids, coreset.numpy("id")),
            ids,
            scores=values,
            labels=shown,
            score_name=score,
            higher_is=higher,
            classes=names,
        ),
    ]
    text = f"Class balance and montage show the coreset of {percent(smallest)}, {len(found):,} samples.{note}"
    return [_section("Selection", text, pictures)]


def _training(histories: list[tuple[str, Artifact]]) -> Any:
    from winnow.tasks.report.curves import training_curves

    return training_curves([(name, history.table().to_pydict()) for name, history in histories])
