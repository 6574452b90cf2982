"""The sections of a run's report."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from winnow.tasks.artifacts import Artifact
from winnow.tasks.data.task import open_split, rows_of
from winnow.tasks.report.bars import class_balance, clustering_bars, score_histogram
from winnow.tasks.report.curves import accuracy_curve, search_curve, training_curves
from winnow.tasks.report.curves import head_losses as loss_curves
from winnow.tasks.report.html import Section
from winnow.tasks.report.montage import selection_montage
from winnow.tasks.report.tables import Table, accuracy_table, difference_table, mean_sd, percent
from winnow.tasks.score import higher_is
from winnow.tasks.train.metrics import clustering_metrics

__all__ = ["accuracy", "clustering", "searches", "selection", "training"]

BEST_EPOCH = (
    "The published code reports the best test accuracy of a run, which chooses the epoch by test labels."
)


def accuracy(rows: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Accuracy after the last epoch, with differences from random; and of the best epoch, as published."""
    return [
        Section("Accuracy", pictures=[accuracy_curve(rows)], table=difference_table(rows)),
        Section("Best epoch", BEST_EPOCH, table=accuracy_table(rows, accuracy="best")),
    ]


def training(histories: list[tuple[str, Artifact]]) -> Section:
    """Loss and accuracy of the proxies' trainings."""
    curves = training_curves([(name, history.table().to_pydict()) for name, history in histories])
    return Section("Proxy training", pictures=[curves])


def clustering(
    train: Artifact, pseudo_labels: Artifact | None, kmeans: Artifact | None, head_losses: Artifact | None
) -> list[Section]:
    """Agreement of pseudo-labels with true labels, where these exist: reported, never used."""
    if pseudo_labels is None:
        return []
    pictures = []
    if (truth := open_split(train).truth) is not None:
        clusterings = {"pseudo-labels": pseudo_labels, "k-means": kmeans}
        measured = {
            name: clustering_metrics(labels.numpy("cluster"), truth)
            for name, labels in clusterings.items()
            if labels is not None
        }
        shares = {
            name: {key: value / 100 for key, value in metrics.items()} for name, metrics in measured.items()
        }
        pictures.append(clustering_bars(shares))
    facts = pseudo_labels.facts
    text = ["The pseudo-labels were brought along."]
    if "used" in facts:
        text = [f"{facts['used']} of {facts['classes']} clusters are used."]
    if head_losses is not None:
        losses = head_losses.numpy("loss").reshape(head_losses.facts["epochs"], head_losses.facts["heads"])
        pictures.append(loss_curves(losses, head_losses.facts["head"]))
        epoch = facts["epoch"] + 1
        text.append(
            f"Epoch {epoch} was chosen by TEST LABELS, as the published code does: not a label-free result."
            if facts["oracle"]
            else f"Head and epoch ({epoch}) were chosen by the teacher's loss; true labels were not seen."
        )
    return [Section("Pseudo-labels", " ".join(text), pictures)] if pictures else []


def searches(made: list[dict[str, Any]]) -> list[Section]:
    """One section per search: a curve over numbers, a table over settings of several parameters."""
    sections = []
    for search in made:
        tried, chosen = [(name, values) for name, values in search["tried"]], search["chosen"]
        alone = isinstance(chosen, int | float)
        kept = percent(search["fraction"])
        name = f"{search['name'] if alone else 'the parameters'} at {kept} kept"
        pictures, table = [], None
        if alone:
            names, values = zip(*tried, strict=True)
            pictures = [search_curve(names, values, chosen, name=name, judged_on=search["judged_on"])]
        else:
            tried.sort(key=lambda item: (item[0] != chosen, -statistics.fmean(item[1])))
            table = Table(
                (search["name"], f"accuracy on {search['judged_on']} (%)"),
                tuple((setting, _accuracy(values)) for setting, values in tried),
                "The chosen one comes first.",
                frozenset({(0, 1)}),
            )
        sections.append(Section(f"Search for {name}", search["text"], pictures, table))
    return sections


def _accuracy(values: Sequence[float]) -> str:
    return mean_sd(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def selection(
    train: Artifact,
    pseudo_labels: Artifact | None,
    scores: Artifact,
    score: str,
    coresets: list[tuple[float, Artifact]],
    chosen: list[dict[str, Any]],
) -> list[Section]:
    """What was kept: where on the score, of which classes, and what it looks like."""
    split = open_split(train)
    ids, values, higher = scores.numpy("id"), scores.numpy(score), higher_is(score)
    assert higher is not None, score
    kept = {}
    for fraction, coreset in coresets:
        cut = next(
            (choice["params"].get("mis_ratio") for choice in chosen if choice["fraction"] == fraction), None
        )
        name = f"{percent(fraction)} kept" + ("" if cut is None else f", mis_ratio {cut:g}")
        kept[name] = rows_of(ids, coreset.numpy("id"))
    smallest, coreset = coresets[0]
    labels = coreset.numpy("label")
    shown, names, note = None, list(split.classes), ""
    if pseudo_labels is not None:
        shown = pseudo_labels.numpy("cluster")[rows_of(pseudo_labels.numpy("id"), ids)]
        names = [f"cluster {i}" for i in range(int(shown.max()) + 1)]
        note = " The numbers under the images are pseudo-labels, which are not class names."
    else:
        shown = split.labels()[rows_of(split.ids, ids)]
    pictures = [
        score_histogram(
            values, kept, score_name=score.upper() if score == "aum" else score, higher_is=higher
        ),
        class_balance(labels, split.classes, dataset=split.truth),
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
    text = (
        f"Class balance and montage show the coreset of {percent(smallest)}, {len(labels):,} samples.{note}"
    )
    return [Section("Selection", text, pictures)]
