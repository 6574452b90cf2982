"""Task of the report stage: everything that a run found, as a table, a Prefect artifact and a self-contained HTML file."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.artifacts import Artifact, store, write
from tasks.cache import library_versions, provenances
from tasks.data.task import open_split, rows_of
from tasks.hardware import describe, device
from tasks.progress import progress

if TYPE_CHECKING:
    from tasks.report.html import Report, Section

__all__ = ["report_elfs"]

log = logging.getLogger("tasks.report")


BEST_EPOCH = "The published code reports the best test accuracy of a run, which chooses the epoch by test labels."


@task(name="report", task_run_name="report-{dataset}", cache_policy=NO_CACHE)
def report_elfs(
    dataset: str,
    train: Artifact,
    labels: Artifact,
    scores: Artifact,
    score: str,
    *,
    trials: list[tuple[str, float, int, Artifact]],
    coresets: list[tuple[str, float, Artifact]],
    clustering: dict[str, dict[str, float]],
    head_losses: Artifact | None,
    cuts: dict[float, float],
    searches: dict[float, dict[float, list[float]]],
    history: Artifact,
    settings: dict[str, Any],
    upstream: bool,
) -> Artifact:
    """The trials as a table artifact; the report of an ELFS run is published on the way."""
    from tasks.report.html import Report
    from tasks.report.plots import accuracy_curve
    from tasks.report.tables import accuracy_table, cost_table, difference_table, summarise, to_csv, verdicts

    with progress("report"):
        seconds = {output["digest"]: step["seconds"] for step in provenances() for output in step["outputs"]}
        runs = [_trial(*trial, seconds.get(trial[3].digest)) for trial in trials]
        # wall-clock times stay out of it, so that equal results have equal digests
        table = write(
            "table", {name: [run[name] for run in runs] for name in runs[0] if name != "seconds"}, meta={"flow": "elfs", "dataset": dataset}
        )
        rows = summarise(runs)
        sections = [
            _section("Accuracy", "", [accuracy_curve(rows)], difference_table(rows)),
            _section(
                "Best epoch",
                BEST_EPOCH,
                [],
                accuracy_table(rows, accuracy="best"),
            ),
            *_clustering_sections(labels, clustering, head_losses, upstream),
            *_search_sections(searches, cuts),
            *_selection_sections(train, labels, scores, score, coresets, cuts),
            _section("Proxy training", "", [_training(history)]),
            _section("Cost", "Measured when each training ran; a cached one keeps its figure.", [], cost_table(rows)),
        ]
        title = f"ELFS on {dataset}" + (" (upstream=True)" if upstream else "")
        report = Report(
            title=title,
            subtitle=" · ".join(
                [f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", f"{train.rows:,} training samples", settings["embedder"], describe(device())]
            ),
            verdicts=verdicts(rows, method="elfs"),
            table=accuracy_table(rows),
            sections=[section for section in sections if section is not None],
            provenance={
                "Parameters": settings,
                "Artifacts": _artifacts(train, labels, scores, coresets, table),
                "Versions": library_versions(),
            },
            csv=to_csv(rows),
        )
        name = "".join(c if c.isascii() and c.isalnum() else "-" for c in dataset)
        file = publish(report, f"elfs-{name}-{table.digest[:8]}")
    store().write(
        f"results/{table.digest}.json", json.dumps({"digest": table.digest, "report": file, "settings": settings}, indent=1).encode()
    )
    return table.model_copy(update={"meta": {**table.meta, "report": file, "verdicts": list(report.verdicts)}})


def _trial(method: str, fraction: float, seed: int, metrics: Artifact, seconds: float | None) -> dict[str, Any]:
    return {
        "method": method,
        "fraction": fraction,
        "seed": seed,
        "samples": metrics.meta["samples"],
        "last_accuracy": metrics.meta["last_accuracy"],
        "best_accuracy": metrics.meta["best_accuracy"],
        "metrics": metrics.digest,
        "seconds": seconds,
    }


def _section(heading: str, text: str, pictures: list[Any], table: Any = None) -> Section | None:
    from tasks.report.html import Section

    return Section(heading, text, pictures, table) if pictures or table is not None else None


def _clustering_sections(
    labels: Artifact, clustering: dict[str, dict[str, float]], head_losses: Artifact | None, upstream: bool
) -> list[Section | None]:
    from tasks.report.plots import clustering_bars
    from tasks.report.plots import head_losses as draw_losses

    pictures = []
    if clustering:
        pictures.append(clustering_bars({name: {key: value / 100 for key, value in found.items()} for name, found in clustering.items()}))
    if head_losses is not None:
        losses = head_losses.numpy("loss").reshape(head_losses.meta["epochs"], head_losses.meta["heads"])
        pictures.append(draw_losses(losses, head_losses.meta["head"]))
    used = labels.meta.get("used")
    text = [f"{used} of {labels.meta['clusters']} clusters are used."] if used is not None else ["The pseudo-labels were brought along."]
    if head_losses is not None:
        if upstream:
            text.append(f"Epoch {labels.meta['epoch'] + 1} was chosen by TEST LABELS, as the published code does: not a label-free result.")
        else:
            text.append(f"Head and epoch ({labels.meta['epoch'] + 1}) were chosen by training loss; true labels were not seen.")
    return [_section("Pseudo-labels", " ".join(text), pictures)]


def _search_sections(searches: dict[float, dict[float, list[float]]], cuts: dict[float, float]) -> list[Section | None]:
    from tasks.report.plots import search_curve
    from tasks.report.tables import percent

    pictures = [
        search_curve(
            list(tried),
            list(tried.values()),
            cuts[fraction],
            name=f"mis_ratio at {percent(fraction)} kept",
            judged_on="held-out pseudo-labels",
        )
        for fraction, tried in searches.items()
    ]
    text = (
        "For each value: select and train on the pseudo-labels of 90 % of the samples, judge on those of the other 10 %. "
        "No true label was used."
    )
    return [_section("Search for mis_ratio", text, pictures)]


def _selection_sections(
    train: Artifact, labels: Artifact, scores: Artifact, score: str, coresets: list[tuple[str, float, Artifact]], cuts: dict[float, float]
) -> list[Section | None]:
    from tasks.report.montage import selection_montage
    from tasks.report.plots import class_balance, score_histogram
    from tasks.report.tables import percent
    from tasks.score import HIGHER_IS

    split = open_split(train)
    ids, values, higher = scores.numpy("id"), scores.numpy(score), HIGHER_IS[score]
    ours = sorted((fraction, coreset) for method, fraction, coreset in coresets if method == "elfs")
    kept = {f"{percent(fraction)} kept, mis_ratio {cuts[fraction]:g}": rows_of(ids, coreset.numpy("id")) for fraction, coreset in ours}
    smallest, coreset = ours[0]
    clusters = labels.numpy("cluster")[rows_of(labels.numpy("id"), ids)]
    found = coreset.numpy("label")
    pictures = [
        score_histogram(values, kept, score_name=score.upper() if score == "aum" else score, higher_is=higher),
        class_balance(found, split.classes, dataset=split.truth),
        selection_montage(
            split.images.read,
            rows_of(ids, coreset.numpy("id")),
            ids,
            scores=values,
            labels=clusters,
            score_name=score,
            higher_is=higher,
            classes=[f"cluster {i}" for i in range(int(clusters.max()) + 1)],
        ),
    ]
    text = (
        f"Class balance and montage show the coreset of {percent(smallest)}, {len(found):,} samples. "
        "The numbers under the images are pseudo-labels, which are not class names."
    )
    return [_section("Selection", text, pictures)]


def _training(history: Artifact) -> Any:
    from tasks.report.plots import training_curves

    columns = history.table().to_pydict()
    return training_curves([("proxy", columns)])


def _artifacts(
    train: Artifact, labels: Artifact, scores: Artifact, coresets: list[tuple[str, float, Artifact]], table: Artifact
) -> dict[str, str]:
    named = {"samples": train, "pseudo-labels": labels, "scores": scores, "trials": table}
    named |= {f"coreset {method} {fraction:g}": coreset for method, fraction, coreset in coresets}
    return {name: artifact.digest for name, artifact in named.items()}


def publish(report: Report, name: str) -> str:
    """Write the HTML file into the store and attach the report to the run in Prefect's UI; returns the file's name in the store."""
    from prefect.artifacts import create_markdown_artifact
    from prefect.context import TaskRunContext

    from tasks.report.html import markdown_report, render_report

    file = f"reports/{name}.html"
    store().write(file, render_report(report).encode())
    if TaskRunContext.get() is not None:
        key = name.lower().rpartition("-")[0].strip("-")  # one key a dataset: the UI keeps its versions
        create_markdown_artifact(
            markdown_report(report), key=key, description="Result table, accuracy curve, clustering, selection, provenance"
        )
    for verdict in report.verdicts:
        log.info("%s", verdict)
    log.info("report: %s", store().path(file))
    return file
