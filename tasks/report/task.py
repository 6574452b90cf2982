"""Tasks of the report stage: draw a run's results, then publish them with their costs, in HTML and the UI."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from winnow.tasks import provenance
from winnow.tasks import runs as ran
from winnow.tasks.artifacts import Artifact, write
from winnow.tasks.cache import cached_task, step_task
from winnow.tasks.progress import progress
from winnow.tasks.store import store

if TYPE_CHECKING:
    from winnow.tasks.report.html import Section

__all__ = ["draw", "draw_comparison", "publish"]

log = logging.getLogger("winnow.tasks.report")

DRAWING = (
    "winnow.tasks.report.bars",
    "winnow.tasks.report.curves",
    "winnow.tasks.report.montage",
    "winnow.tasks.report.sections",
    "winnow.tasks.report.verdicts",
)


@cached_task(version="4", name="report", run_name="report-{dataset}", modules=DRAWING)
def draw(
    dataset: str,
    train: Artifact,
    method: str,
    *,
    trials: list[dict[str, Any]],
    scores: Artifact,
    score: str,
    history: Artifact,
    chosen: list[dict[str, Any]],
    searches: list[dict[str, Any]],
    pseudo_labels: Artifact | None = None,
    kmeans: Artifact | None = None,
    head_losses: Artifact | None = None,
) -> dict[str, Artifact]:
    """The trials as a table, and the pictures and tables of a run's report.

    They contain no times and no device: a run that was interrupted gives exactly the same.

    Args:
        dataset: its name.
        train: the samples that were selected from.
        method: the selector that the run is about; the others are its baselines.
        trials: ``method``, ``fraction``, ``seed``, annotated ``coreset`` and ``metrics`` of every training.
        scores: of the samples; ``score`` is the one selected by.
        history: of the training that the scores were recorded in.
        chosen: the method's parameters: ``fraction`` and ``params``.
        searches: ``fraction``, ``name`` of what was searched, ``tried`` values with their accuracies, the
            ``chosen`` one, ``judged_on``.
        pseudo_labels: clusters in place of labels.
        kmeans: their baseline.
        head_losses: of the cluster heads.

    Returns:
        ``trials`` and ``report``.
    """
    from winnow.tasks.report import sections
    from winnow.tasks.report.statistics import summarise
    from winnow.tasks.report.verdicts import verdicts

    with progress("report"):
        runs = [_row(trial) for trial in trials]
        rows = summarise(runs)
        parts = [
            *sections.accuracy(rows),
            *sections.clustering(train, pseudo_labels, kmeans, head_losses),
            *sections.searches(searches),
            *sections.selection(train, pseudo_labels, scores, score, _coresets(trials, method), chosen),
            sections.training([("proxy", history)]),
        ]
        made = {"samples": train, "scores": scores}
        made |= {} if pseudo_labels is None else {"pseudo-labels": pseudo_labels}
        made |= {f"coreset {t['method']} {t['fraction']:g}": t["coreset"] for t in reversed(trials)}
        return _drawn(dataset, runs, verdicts(rows, method=method), parts, made, compared=False)


@cached_task(version="3", name="comparison", run_name="comparison-{dataset}", modules=DRAWING)
def draw_comparison(
    dataset: str, train: Artifact, *, trials: list[dict[str, Any]], histories: list[dict[str, Any]]
) -> dict[str, Artifact]:
    """Many methods side by side: the trials as a table, differences from random, one figure.

    Args:
        dataset: its name.
        train: the samples that were selected from.
        trials: ``method``, ``fraction``, ``seed``, annotated ``coreset`` and ``metrics`` of every training.
        histories: ``seed`` and ``history`` of the proxies' trainings.

    Returns:
        ``trials`` and ``report``.
    """
    from winnow.tasks.report import sections
    from winnow.tasks.report.statistics import summarise
    from winnow.tasks.report.verdicts import verdicts

    with progress("report"):
        runs = [_row(trial) for trial in trials]
        rows = summarise(runs)
        parts = [
            *sections.accuracy(rows),
            sections.training([(f"seed {proxy['seed']}", proxy["history"]) for proxy in histories]),
        ]
        return _drawn(dataset, runs, verdicts(rows), parts, {"samples": train}, compared=True)


def _row(trial: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: trial[name] for name in ("method", "fraction", "seed")}
    row |= {name: trial["metrics"].facts[name] for name in ("samples", "last_accuracy", "best_accuracy")}
    return row | {name: trial[name].digest for name in ("metrics", "coreset")}


def _coresets(trials: Iterable[Mapping[str, Any]], method: str) -> list[tuple[float, Artifact]]:
    """A method's coresets by fraction, the smallest first."""
    first = {t["fraction"]: t["coreset"] for t in trials if t["method"] == method}
    return sorted(first.items(), key=lambda item: item[0])


def _drawn(
    dataset: str,
    runs: list[dict[str, Any]],
    verdicts: Sequence[str],
    parts: Sequence[Section | None],
    made: Mapping[str, Artifact],
    *,
    compared: bool,
) -> dict[str, Artifact]:
    from winnow.tasks.report.html import packed

    columns = {name: [run[name] for run in runs] for name in runs[0]}
    facts = {"dataset": dataset, "verdicts": list(verdicts), "compared": compared}
    files = packed([part for part in parts if part is not None])
    digests = {name: artifact.digest for name, artifact in made.items()}
    return {
        "trials": write("table", columns, facts=facts),
        "report": write(
            "report", {"name": list(files), "content": list(files.values())}, facts={"artifacts": digests}
        ),
    }


@step_task(name="publish", run_name="publish-{name}")
def publish(
    name: str,
    title: str,
    train: Artifact,
    drawn: dict[str, Artifact],
    chosen: list[dict[str, Any]],
    settings: dict[str, Any],
) -> Artifact:
    """Put the report into the store, as HTML, Markdown and CSV, and into Prefect's UI; returns the trials.

    The time that the steps took is added here: it belongs to their provenance, not to the results.
    """
    from prefect.artifacts import create_markdown_artifact

    from winnow.tasks.report.html import Report, Section, markdown_report, render_report, unpacked
    from winnow.tasks.report.statistics import mean_ranks, summarise
    from winnow.tasks.report.tables import (
        accuracy_table,
        comparison_table,
        cost_table,
        percent,
        to_csv,
        to_markdown,
    )

    trials, content = drawn["trials"], drawn["report"]
    runs, device = _measured(trials.table().to_pylist())
    rows = summarise(runs)
    if trials.facts["compared"]:
        ranks = mean_ranks(runs)
        rows = [row | {"rank": ranks.get(row["method"])} for row in rows]
    main = comparison_table(runs) if trials.facts["compared"] else accuracy_table(rows)
    files = content.table().to_pydict()
    costs = "Measured when each training ran; a cached one keeps its figure."
    facts = [f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", f"{train.rows:,} training samples", device]
    parameters = {
        " ".join(filter(None, (choice.get("method"), f"{percent(choice['fraction'])} kept"))): ", ".join(
            f"{key} {value}" for key, value in choice["params"].items()
        )
        for choice in chosen
        if choice["params"]
    }
    report = Report(
        title=title,
        subtitle=" · ".join(filter(None, facts)),
        verdicts=tuple(trials.facts["verdicts"]),
        table=main,
        sections=[
            *unpacked(dict(zip(files["name"], files["content"], strict=True))),
            *([Section("Cost", costs, table=table)] if (table := cost_table(rows)) is not None else []),
        ],
        provenance={
            **({"Selection": parameters} if parameters else {}),
            "Parameters": settings,
            "Artifacts": {**content.facts["artifacts"], "trials": trials.digest},
            "Versions": provenance.library_versions(),
        },
        csv=to_csv(rows),
    )
    # the UI keeps the versions of a key
    key = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")
    stem = f"reports/{key}-{trials.digest[:8]}"
    pages = {"html": render_report(report), "csv": report.csv, "md": to_markdown(main)}
    for suffix, page in pages.items():
        store().write(f"{stem}.{suffix}", page.encode())
    record = {"digest": trials.digest, "report": f"{stem}.html", "settings": settings}
    store().write(f"results/{trials.digest}.json", json.dumps(record, indent=1).encode())
    ran.record(trials, trials.facts["dataset"], report.verdicts[0], report=f"{stem}.html")
    create_markdown_artifact(
        markdown_report(report),
        key=key,
        description="Result table, accuracy curve, clustering, selection, provenance",
    )
    for verdict in report.verdicts:
        log.info("%s", verdict)
    log.info("report: %s", store().address(f"{stem}.html"))
    return Artifact(**{**trials.to_dict(), "notes": {**trials.notes, "report": f"{stem}.html"}})


def _measured(trials: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The trials with the time that each and its selection took, and the device that most of them ran on."""
    runs, devices = [], Counter[str]()
    for trial in trials:
        training = provenance.maker(trial["metrics"]) or {}
        annotating = provenance.maker(trial["coreset"]) or {"inputs": {}}
        coreset = annotating["inputs"].get("coreset")
        selecting = (provenance.maker(coreset["artifact"]) if coreset else None) or {}
        seconds = {"seconds": training.get("seconds"), "selection_seconds": selecting.get("seconds")}
        runs.append(trial | seconds)
        devices.update([training["device"]] if "device" in training else [])
    return runs, next((name for name, _ in devices.most_common(1)), "")
