"""What a flow runs with (data, seeds, device, recipes; the user's over the preset's), and its steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from winnow.flows import checks, presets
from winnow.flows.forms import At, merged, value_at
from winnow.flows.methods import EVERYTHING, Method, Setting, check_score, methods_by_name
from winnow.flows.trials import Entrant, search, trials
from winnow.tasks.artifacts import Artifact
from winnow.tasks.data.task import bring_embeddings, bring_pseudo_labels, load
from winnow.tasks.embed.task import checkpoint_digest, embed, knn, normalise
from winnow.tasks.errors import BadInput
from winnow.tasks.report.task import draw, publish
from winnow.tasks.score.task import record_dynamics
from winnow.tasks.train.recipe import HeadsConfig, Recipe
from winnow.tasks.train.task import cluster, cluster_kmeans

__all__ = ["Experiment", "PseudoLabels", "Recorded", "experiment"]


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo-labels, and what the report shows of how they were made."""

    labels: Artifact
    kmeans: Artifact | None = None
    head_losses: Artifact | None = None


@dataclass(frozen=True)
class Recorded:
    """What a proxy's training yields: the signals that selectors read, its history, the network."""

    signals: dict[str, Artifact]
    history: Artifact
    network: Artifact | None


def experiment(flow: str, arguments: Mapping[str, Any]) -> Experiment:
    """A flow's run: its arguments, with the preset's value where one is None, all checked.

    Args:
        flow: its name.
        arguments: by name; ``locals()`` in the flow's first line.

    Raises:
        BadInput: naming the parameter.
        StoreUnusable: nothing could be written.
    """
    checks.storage()
    checks.arguments(arguments)
    dataset, upstream = arguments["dataset"], arguments["upstream"]
    chosen = {name: value for name, value in arguments.items() if value is not None}
    preset = presets.PRESETS[flow](dataset, **({"upstream": upstream} if flow == "deepcore" else {}))
    tables = presets.grid(flow, dataset, 0.1)
    if chosen.get("score", preset.get("score")) != preset.get("score"):  # its values are for its score
        preset = {name: value for name, value in preset.items() if name not in tables}
    values = merged({**arguments, **preset}, chosen)
    for name in tables:
        checks.table(name, values.get(name), arguments.get("fractions", ()), preset.get(name))
    clusters = values if flow in ("elfs", "select") else {**presets.elfs(dataset), "clusters": None}
    return Experiment(
        flow,
        values,
        proxy=checks.model("proxy", values["proxy"]),
        training=checks.model("training", values.get("training", values["proxy"])),
        heads=checks.model("heads", clusters["heads"]),
        clustering=clusters,
    )


@dataclass(frozen=True)
class Experiment:
    """A flow's run: what its steps share.

    Attributes:
        flow: its name.
        values: every parameter, by name, as it is used.
        proxy: training of the network that selection looks at.
        training: on the coresets.
        heads: training of the cluster heads.
        clustering: parameters of ``elfs`` that make the pseudo-labels.
    """

    flow: str
    values: Mapping[str, Any]
    proxy: Recipe
    training: Recipe
    heads: HeadsConfig
    clustering: Mapping[str, Any]

    @property
    def dataset(self) -> str:
        return str(self.values["dataset"])

    @property
    def seed(self) -> int:
        return int(self.values.get("seed", 0))

    @property
    def device(self) -> str:
        return str(self.values["device"])

    @property
    def upstream(self) -> bool:
        return bool(self.values["upstream"])

    @property
    def where(self) -> dict[str, Any]:
        """Seed and device, as steps take them."""
        return {"seed": self.seed, "device": self.device}

    def seeded(self, seed: int) -> Experiment:
        """The same run with another seed."""
        return replace(self, values={**self.values, "seed": seed})

    # -- who takes part --------------------------------------------------------------------------------------

    def method(self, fixed: Iterable[str], searched: Iterable[str], *, final_pass: bool = True) -> Method:
        """The flow's own method: at each fraction, its settled parameters, and values to try for the rest.

        Args:
            fixed: parameters that are the same at every fraction.
            searched: parameters that are a number, a table by fraction, or to be searched.
            final_pass: whether the trained network's scores can be used.

        Raises:
            BadInput: the score is not recorded.
        """
        check_score(self.values["score"], final_pass=final_pass)
        shared = {name: self.values[name] for name in fixed} | {"upstream": self.upstream}
        settings = []
        for fraction in self.values["fractions"]:
            grid = presets.grid(self.flow, self.dataset, fraction)
            at = {name: value_at(self.values.get(name), fraction) for name in searched}
            settled = {name: value for name, value in at.items() if value != "auto"}
            open_ = {name: grid[name] for name in at if name not in settled}
            settings.append(Setting(fraction, shared | settled, open_))
        return Method(self.flow, self.flow, tuple(settings), bool(self.values.get("balanced")))

    def baselines(
        self, signals: Iterable[str] = EVERYTHING, *, final_pass: bool = True, **params: Mapping[str, Any]
    ) -> list[Method]:
        """The methods to compare with; those whose score can be chosen take the flow's.

        Args:
            signals: those that the flow makes.
            final_pass: whether the trained network's scores are among them.
            params: parameters by selector.

        Raises:
            BadInput: one is the flow's own method, or needs what the flow does not make.
        """
        if self.flow in self.values["baselines"]:
            raise BadInput(f"baselines names {self.flow} itself.")
        return methods_by_name(
            self.values["baselines"],
            self.values["fractions"],
            signals=signals,
            final_pass=final_pass,
            score=self.values["score"],
            params=params,
        )

    # -- steps -----------------------------------------------------------------------------------------------

    def load(self, *methods: Method) -> tuple[Artifact, Artifact]:
        """The training samples, which must suit the methods, and the labelled test samples."""
        options, values = self.values["dataset_options"], self.values
        train = load(self.dataset, "train", options=options)
        graph = 0 if values.get("pseudo_labels") else values.get("neighbours", 0)
        neighbours = [value_at(graph, fraction) for fraction in values["fractions"]]
        checks.fits(
            train,
            methods,
            clusters=values.get("clusters"),
            neighbours=max((k for k in neighbours if k != "auto"), default=0),
        )
        return train, load(self.dataset, "test", labels=True, options=options)

    def true_labels(self) -> Artifact:
        """The training samples with their labels."""
        return load(self.dataset, "train", labels=True, options=self.values["dataset_options"])

    def embeddings(self, train: Artifact) -> Artifact:
        """Embeddings of the training samples: the user's own, or the embedder's."""
        if self.values.get("embeddings") is not None:
            return bring_embeddings(train, self.values["embeddings"])
        return self._embed(train, self.values)

    def _embed(
        self, samples: Artifact, how: Mapping[str, Any], learn_from: Artifact | None = None
    ) -> Artifact:
        name, options = how["embedder"], how.get("embedder_options") or {}
        weights = checkpoint_digest(name)
        return embed(samples, name, options=options, checkpoint=weights, learn_from=learn_from, **self.where)

    def pseudo_labels(self, train: Artifact, test: Artifact | None = None) -> PseudoLabels:
        """ELFS's (embed, link, cluster) or the user's; with ``test``, its labels choose the epoch."""
        files = [name for name in ("pseudo_labels", "embeddings") if self.values.get(name) is not None]
        if test is not None and files:
            raise BadInput(
                f"upstream=True chooses the epoch on embedded test images; your own {files[0]} leave it none."
            )
        if "pseudo_labels" in files:
            return PseudoLabels(bring_pseudo_labels(train, self.values["pseudo_labels"]))
        how = self.clustering
        file = how.get("embeddings")
        features = self._embed(train, how) if file is None else bring_embeddings(train, file)
        oracle = None if test is None else self._embed(test, how, learn_from=train)
        if (scale := how["normalisation"]) != "none":
            oracle = oracle and normalise(oracle, scale, reference=features)
            features = normalise(features, scale)
        graph = knn(features, how["neighbours"], upstream=test is not None, device=self.device)
        classes = how.get("clusters") or train.facts["classes"]
        heads = self.heads.model_dump(exclude_defaults=True)
        clusters = cluster(features, graph, classes, heads, test=test, test_embeddings=oracle, **self.where)
        kmeans = cluster_kmeans(features, classes, **self.where)
        return PseudoLabels(clusters["pseudo_labels"], kmeans, clusters["losses"])

    def record(
        self, train: Artifact, labels: Artifact, *, final_pass: bool = True, **options: Any
    ) -> Recorded:
        """Train the proxy on all samples and record dynamics; with ``final_pass``, also a pass at the end."""
        told = record_dynamics(train, labels, self.proxy, final_pass=final_pass, **self.where, **options)
        signals = {"labels": labels, "scores": told["scores"]}
        if final_pass:
            signals |= {"embeddings": told["features"], "logits": told["logits"]}
        return Recorded(signals, told["history"], told.get("network"))

    def search(
        self, train: Artifact, method: Method, signals: Mapping[str, Artifact]
    ) -> tuple[Method, list[dict[str, Any]]]:
        """The method with its open parameters chosen by separate trainings, and the searches."""
        if not any(setting.grid for setting in method.settings):
            return method, []
        recipe = self.training
        if (iterations := self.values.get("search_iterations")) is not None:
            whole = {"training": recipe.model_dump(exclude_none=True)}
            shorter = merged(whole, {"training": {"iterations": iterations}})
            recipe = checks.model("training", shorter["training"])
        return search(train, signals, method, recipe, seeds=self.values["search_seeds"], **self.where)

    def trials(
        self, train: Artifact, test: Artifact, methods: Iterable[Method], signals: Mapping[str, Artifact]
    ) -> list[dict[str, Any]]:
        """Select with every method once, train on every coreset with every seed."""
        seeds = tuple(self.values["seeds"])
        entrants = [Entrant(method, signals, seeds, self.seed) for method in methods]
        return trials(train, test, entrants, self.training, self.device)

    def report(
        self,
        title: str,
        train: Artifact,
        results: list[dict[str, Any]],
        method: Method,
        recorded: Recorded,
        searches: list[dict[str, Any]],
        pseudo: PseudoLabels | None = None,
    ) -> Artifact:
        """Draw and publish the report; returns the trials."""
        chosen = [{"fraction": s.fraction, "params": dict(s.params)} for s in method.settings]
        drawn = draw(
            self.dataset,
            train,
            method.name,
            trials=results,
            scores=recorded.signals["scores"],
            score=self.values["score"],
            history=recorded.history,
            chosen=chosen,
            searches=searches,
            pseudo_labels=None if pseudo is None else pseudo.labels,
            kmeans=None if pseudo is None else pseudo.kmeans,
            head_losses=None if pseudo is None else pseudo.head_losses,
        )
        name = f"{self.flow}-{self.dataset}"
        return publish(name, self.titled(title), train, drawn, chosen, self.settings())

    # -- what the report says --------------------------------------------------------------------------------

    def titled(self, title: str) -> str:
        """The report's title."""
        label_free = ", without labels" if self.values.get("labels") == "pseudo" else ""
        return f"{title} on {self.dataset}{label_free}{' (upstream=True)' if self.upstream else ''}"

    def settings(self) -> dict[str, Any]:
        """What the run was made with, flat; without the values that the user's files replaced."""
        recipes = {"proxy": self.proxy.model_dump(), "training": self.training.model_dump()}
        values = dict(self.values) | recipes
        if self.flow == "elfs":
            values["heads"] = self.heads.model_dump(exclude={"neighbours"})
        replaced: tuple[str, ...] = ()
        if values.get("pseudo_labels"):
            replaced = ("embedder", "embedder_options", "normalisation", "neighbours", "heads")
        elif values.get("embeddings"):
            replaced = ("embedder", "embedder_options")
        flat: dict[str, Any] = {}
        for name, value in values.items():
            if name in replaced or value is None or value == {}:
                continue
            if name in ("embeddings", "pseudo_labels"):
                value = Path(value).name
            if isinstance(value, dict):
                flat |= {f"{name}.{key}": inner for key, inner in value.items() if inner is not None}
            elif isinstance(value, list) and value and isinstance(value[0], At):
                flat |= {f"{name} at {at.fraction:g}": at.value for at in value}
            else:
                flat[name] = list(value) if isinstance(value, tuple) else value
        return flat
