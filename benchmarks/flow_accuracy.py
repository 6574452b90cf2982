"""The accuracies of a flow's run as a line of benchmarks/results: of a run too long to be repeated here.

    WINNOW_STORE=... python benchmarks/flow_accuracy.py NAME DIGEST --command "winnow run d2/cifar10 ..."

DIGEST is what the run printed after "trials:". Means, spreads, paired differences from random and what was
chosen are read from the store, device and versions from the provenance of the trainings.
"""

from __future__ import annotations

import argparse
import sys

from _common import record

from winnow.tasks.artifacts import find
from winnow.tasks.provenance import artifact_of, maker
from winnow.tasks.provenance import steps as recorded
from winnow.tasks.report.statistics import mean_ranks, summarise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("digest")
    parser.add_argument("--command", required=True)
    if len(sys.argv) == 1:
        parser.exit(0, "flow_accuracy: skipped, no run is named\n")
    arguments = parser.parse_args()
    (digest,) = find(arguments.digest)
    trials = artifact_of(digest).table().to_pylist()
    steps = [step for trial in trials if (step := maker(trial["metrics"])) is not None]
    ranks = mean_ranks(trials)
    rows = [
        {
            "method": row["method"],
            "fraction": row["fraction"],
            "seeds": row["n"],
            **{
                name: None if row[name] is None else round(100 * row[name], 2)
                for name in ("last_mean", "last_sd", "last_difference")
            },
            "p": row["last_p"],
            "rank": None if row["method"] not in ranks else round(ranks[row["method"]], 2),
        }
        for row in summarise(trials)
    ]
    pseudo = [
        output["facts"]
        for step in recorded()
        for output in step["outputs"]
        if output["kind"] == "pseudo_labels"
    ]
    result = {
        "command": arguments.command,
        "rows": rows,
        "device": sorted({step["device"] for step in steps}),
        "training_seconds": round(sum(step["seconds"] for step in steps), 1),
        "pseudo_labels": pseudo[:1],
    }
    record(arguments.name, result)


if __name__ == "__main__":
    main()
