"""elfs/digits repeated: how much of ELFS's gain at 10 % kept survives other seeds of clustering and dynamics.

    python benchmarks/elfs_digits_seeds.py [--seeds 5]

The flow's own ± is over trainings on one coreset. Here heads, dynamics and selection are made anew for each
seed (five trainings each), so that the spread is that of the method. About five minutes on two cores; with
WINNOW_STORE set, what is cached there is not repeated.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess

from _common import WINNOW, fresh_home, options, record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="two at least")
    seeds = range(parser.parse_args().seeds)
    with fresh_home() as environment:
        store = os.environ.setdefault("WINNOW_STORE", environment["WINNOW_STORE"])
        for seed in seeds:
            parameters = options("fractions=[0.1]", 'baselines=["random"]', f"seed={seed}")
            command = [*WINNOW, "run", "elfs/digits", "--plain", *parameters]
            subprocess.run(
                command, check=True, capture_output=True, env={**environment, "WINNOW_STORE": store}
            )
        means, clusterings = accuracies()
    ours, random = means["elfs"], means["random"][0]
    result = {
        "fraction": 0.1,
        "pipeline_seeds": len(ours),
        "trainings_each": 5,
        "elfs": [round(value, 2) for value in ours],
        "elfs_mean": round(statistics.fmean(ours), 2),
        "elfs_sd": round(statistics.stdev(ours), 2),
        "random_mean": round(random, 2),
        "pseudo_label_accuracy": clusterings["cluster"],
        "kmeans_accuracy": clusterings["kmeans"],
    }
    record("elfs_digits_seeds", result)


def accuracies() -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Test accuracy (%) of each seed's coreset, and accuracy (%) of its pseudo-labels and of k-means."""
    from winnow.tasks.artifacts import Artifact
    from winnow.tasks.data.load import load_split
    from winnow.tasks.provenance import steps as recorded
    from winnow.tasks.train.metrics import clustering_metrics

    truth = load_split("digits", "train").truth
    assert truth is not None
    means: dict[str, list[float]] = {"elfs": [], "random": []}
    clusterings: dict[str, dict[int, float]] = {"cluster": {}, "kmeans": {}}
    for step in recorded():
        outputs = [Artifact(**output) for output in step["outputs"]]
        if step["task"] in clusterings:
            labels = next(output for output in outputs if output.kind == "pseudo_labels").numpy("cluster")
            clusterings[step["task"]][step["inputs"]["seed"]] = round(
                clustering_metrics(labels, truth)["accuracy"], 2
            )
        if step["task"] == "report":
            trials = next(output for output in outputs if output.kind == "table").table().to_pylist()
            for method, values in means.items():
                of_method = [
                    100 * trial["last_accuracy"]
                    for trial in trials
                    if trial["method"] == method and trial["fraction"] == 0.1
                ]
                values.append(statistics.fmean(of_method))
    return means, {task: [found[seed] for seed in sorted(found)] for task, found in clusterings.items()}


if __name__ == "__main__":
    main()
