"""The report: statistics against hand-computed values and scipy, figures, montages, HTML and Markdown."""

from __future__ import annotations

import base64
import csv
import io
import re
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
import rich.console
from PIL import Image
from scipy import stats

from winnow.tasks.errors import BadInput
from winnow.tasks.report import bars, canvas, curves, regions, tables
from winnow.tasks.report.html import Report, Section, markdown_report, render_report
from winnow.tasks.report.montage import Group, montage, selection_montage
from winnow.tasks.report.statistics import summarise
from winnow.tasks.report.verdicts import verdicts

RANDOM = (0.910, 0.900, 0.920)
ELFS = (0.930, 0.935, 0.931)


def trial(method: str, seed: int, accuracy: float, fraction: float = 0.1, **more) -> dict:
    return {
        "method": method,
        "fraction": fraction,
        "seed": seed,
        "last_accuracy": accuracy,
        "best_accuracy": min(1.0, accuracy + 0.01),
        **more,
    }


def trials(fraction: float = 0.1) -> list[dict]:
    runs = [trial("random", s, a, fraction, samples=5000, seconds=10.0 + s) for s, a in enumerate(RANDOM)]
    return runs + [trial("elfs", s, a, fraction, samples=5000, seconds=20.0) for s, a in enumerate(ELFS)]


def whole_sweep() -> list[dict]:
    generator = np.random.default_rng(0)
    runs = [trial("full", s, 0.955 + 0.001 * s, 1.0) for s in range(3)]
    for i, method in enumerate(("random", "elfs", "d2")):
        runs += [
            trial(method, s, 0.95 - 0.2 * (1 - f) ** 4 + 0.01 * i + generator.normal(0, 0.003), f)
            for f in (0.1, 0.3, 0.7)
            for s in range(3)
        ]
    return runs


def row_of(rows: list[dict], method: str, fraction: float = 0.1) -> dict:
    return next(row for row in rows if row["method"] == method and row["fraction"] == fraction)


def png_size(content: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        image.load()
        return image.size


def check(picture: canvas.Picture) -> None:
    width, height = png_size(picture.png)
    assert width > 500
    assert height > 100
    assert picture.svg is not None
    assert picture.svg.startswith(b"<?xml")
    assert b"</svg>" in picture.svg
    assert picture.alt


# statistics


def test_means_and_differences_by_hand():
    rows = summarise(trials())
    assert [row["method"] for row in rows] == ["random", "elfs"]
    random, elfs = rows
    assert random["n"] == elfs["n"] == 3
    assert random["last_mean"] == pytest.approx(0.91)
    assert random["last_sd"] == pytest.approx(0.01)  # deviations 0, -0.01, +0.01 over n - 1 = 2
    assert random["best_mean"] == pytest.approx(0.92)
    assert random["seconds"] == pytest.approx(11.0)
    assert random["samples"] == 5000
    # differences 0.020, 0.035, 0.011: mean 0.022, squares of deviations 4e-6 + 169e-6 + 121e-6
    assert elfs["pairs"] == 3
    assert elfs["last_difference"] == pytest.approx(0.022)
    assert elfs["last_difference_sd"] == pytest.approx(np.sqrt(294e-6 / 2))
    assert elfs["last_p"] == pytest.approx(stats.ttest_rel(ELFS, RANDOM).pvalue)
    t = 0.022 * np.sqrt(3) / np.sqrt(147e-6)
    assert elfs["last_p"] == pytest.approx(2 * stats.t.sf(t, 2))
    assert random["baseline"] is None
    assert random["last_p"] is None


def test_pairs_are_matched_by_seed_not_by_order():
    shuffled = trials()
    assert summarise(shuffled[3:] + shuffled[2::-1])[1]["last_p"] == pytest.approx(
        stats.ttest_rel(ELFS, RANDOM).pvalue
    )
    partly = [trial("random", s, a) for s, a in ((0, 0.90), (1, 0.92), (7, 0.1))] + [
        trial("elfs", s, a) for s, a in ((1, 0.95), (0, 0.92))
    ]
    row = row_of(summarise(partly), "elfs")
    assert row["pairs"] == 2
    assert row["last_difference"] == pytest.approx(0.025)
    assert row["last_p"] == pytest.approx(stats.ttest_rel([0.92, 0.95], [0.90, 0.92]).pvalue)


def test_what_cannot_be_had_is_none():
    single = summarise([trial("random", 0, 0.9), trial("elfs", 0, 0.92)])[1]
    assert single["last_sd"] is None
    assert single["last_difference_sd"] is None
    assert single["last_p"] is None
    assert single["last_difference"] == pytest.approx(0.02)
    same = [trial("random", s, 0.5 + 0.1 * s) for s in range(3)] + [
        trial("elfs", s, 0.6 + 0.1 * s) for s in range(3)
    ]
    assert summarise(same)[1]["last_p"] is None  # not a tiny p made of rounding noise
    apart = summarise([trial("random", 0, 0.9), trial("elfs", 1, 0.92)])[1]
    assert apart["pairs"] == 0
    assert apart["last_difference"] is None
    alone = summarise([trial("elfs", 0, 0.92)])[0]
    assert alone["baseline"] is None


def test_a_baseline_of_the_whole_dataset_is_compared_with_every_fraction():
    runs = [trial("none", s, 0.95, 1.0) for s in range(2)] + [
        trial("kakurenbo", s, 0.94 + 0.002 * s, f) for f in (0.6, 0.7) for s in range(2)
    ]
    rows = summarise(runs, baseline="none")
    assert [row["last_difference"] for row in rows] == [None, pytest.approx(-0.009), pytest.approx(-0.009)]
    assert "against none 95.0" in verdicts(rows, method="kakurenbo")[0]


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([], "trials is empty"),
        ([{"method": "elfs"}], "trials[0] has no 'fraction'"),
        ([trial("elfs", 0, 0.9), trial("elfs", 1, 93.1)], "trials[1]: last_accuracy is 93.1"),
        ([trial("elfs", 0, float("nan"))], "last_accuracy is nan"),
        ([trial("elfs", 0, 0.9, 1.5)], "fraction is 1.5"),
        ([trial("elfs", 0, 0.9), trial("elfs", 0, 0.91)], "trials[1] repeats trials[0]"),
    ],
)
def test_bad_trials_are_refused(runs, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        summarise(runs)


# tables


def test_accuracy_table_states_what_is_compared_and_stresses_the_best():
    rows = summarise(trials(0.1) + trials(0.3) + [trial("full", s, 0.955, 1.0) for s in range(3)])
    table = tables.accuracy_table(rows)
    assert table.columns == ("method", "10 % kept", "30 % kept", "100 % kept")
    assert [row[0] for row in table.rows] == ["random", "elfs", "full"]
    assert table.rows[0][1] == "91.0 ± 1.0"
    assert table.rows[2] == ("full", tables.MISSING, tables.MISSING, "95.5 ± 0.0")
    assert table.bold == {(1, 1), (1, 2)}
    assert "last epoch" in table.caption
    assert "3 seeds" in table.caption
    best = tables.accuracy_table(rows, accuracy="best")
    assert "best epoch" in best.caption
    assert best.rows[0][1] == "92.0 ± 1.0"
    markdown = tables.to_markdown(table)
    assert "| elfs | **93.2 ± 0.3** | **93.2 ± 0.3** | – |" in markdown
    assert markdown.splitlines()[1] == "| :--- | ---: | ---: | ---: |"


def test_ties_are_all_best_and_small_spreads_get_a_second_digit():
    tie = [trial(m, s, 0.9 + 0.0002 * s) for m in ("random", "d2") for s in range(2)]
    table = tables.accuracy_table(summarise(tie))
    assert table.bold == {(0, 1), (1, 1)}
    assert table.rows[0][1] == "90.01 ± 0.01"


def test_unequal_numbers_of_seeds_are_shown():
    table = tables.accuracy_table(summarise([*trials(), trial("d2", 0, 0.9)]))
    assert [row[1] for row in table.rows] == ["91.0 ± 1.0 (3)", "93.2 ± 0.3 (3)", "90.0 (1)"]
    assert "1 to 3 seeds, n in brackets" in table.caption


def test_difference_table():
    table = tables.difference_table(summarise(trials()))
    assert table is not None
    p = stats.ttest_rel(ELFS, RANDOM).pvalue
    assert table.rows == (("elfs", f"+2.2 ± 1.2\n(p = {p:.3f})"),)
    assert "not adjusted" in table.caption
    assert tables.difference_table(summarise([trial("elfs", 0, 0.9)])) is None


def test_terminal_table_and_csv():
    rows = summarise(trials())
    console = rich.console.Console(width=80, file=io.StringIO(), record=True)
    console.print(tables.to_rich(tables.accuracy_table(summarise([trial("[bold]x", 0, 0.9), *trials()]))))
    printed = console.export_text()
    assert "[bold]x" in printed
    assert "93.2±0.3" in printed
    read = list(csv.DictReader(io.StringIO(tables.to_csv(rows))))
    assert float(read[1]["last_p"]) == rows[1]["last_p"]
    assert read[0]["last_p"] == ""
    assert len(list(csv.DictReader(io.StringIO(tables.to_csv(trials()))))) == 6


def test_cost_table():
    table = tables.cost_table(summarise([*trials(), trial("full", 0, 0.95, 1.0, seconds=431.0)]))
    assert table is not None
    assert table.rows == (
        ("random", "5,000\n11 s", "–"),
        ("elfs", "5,000\n20 s", "–"),
        ("full", "–", "7.2 min"),
    )
    assert tables.cost_table(summarise([trial("elfs", 0, 0.9)])) is None


def test_markdown_escapes():
    assert (
        tables.escape_markdown("a|b <i> *x* [u](v)\n# c & d") == r"a\|b &lt;i&gt; \*x\* \[u\](v) \# c &amp; d"
    )
    assert tables.escape_markdown("- item") == r"\- item"
    assert tables.escape_markdown("1. item") == r"1\. item"
    assert tables.escape_markdown("+2.1") == "+2.1"


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ((0.95, 0.942, 0.961), "beats random"),
        ((0.86, 0.849, 0.871), "worse than random"),
        ((0.93, 0.90, 0.921), "does not reliably beat random"),
        ((0.90, 0.91, 0.915), "does not beat random"),
    ],
)
def test_verdicts_are_honest(ours, said):
    rows = summarise(
        [trial("random", s, a) for s, a in enumerate(RANDOM)]
        + [trial("elfs", s, a) for s, a in enumerate(ours)]
    )
    (line,) = verdicts(rows)
    p = stats.ttest_rel(ours, RANDOM).pvalue
    assert line.startswith(f"At 10 % kept (90 % pruned): elfs {100 * np.mean(ours):.1f} ± ")
    assert f"paired over 3 seeds, {tables.p_value(p)}; {said}." in line


def test_verdicts_of_one_seed_of_many_methods_and_of_nothing():
    (better,) = verdicts(summarise([trial("random", 0, 0.9), trial("elfs", 0, 0.92)]))
    assert better == (
        "At 10 % kept (90 % pruned): elfs 92.0 against random 90.0: +2.0 points on one seed, too few for a "
        "test."
    )
    (worse,) = verdicts(summarise([trial("random", 0, 0.9), trial("elfs", 0, 0.88)]))
    assert worse.endswith("−2.0 points on one seed, too few for a test; does not beat random.")
    rows = summarise(whole_sweep())
    lines = verdicts(rows)
    assert len(lines) == 3
    assert all("the best of 2 methods" in line for line in lines)
    assert "points below full (95.6)" in lines[0]
    assert "elfs" in verdicts(rows, method="elfs")[0]
    assert "nothing to compare" in verdicts(summarise([trial("random", 0, 0.9)]))[0]
    assert "no baseline" in verdicts(summarise([trial("elfs", 0, 0.9)]))[0]
    with pytest.raises(BadInput, match="'d3' is in no row"):
        verdicts(rows, method="d3")


# figures


def test_accuracy_curve_in_every_shape():
    check(curves.accuracy_curve(summarise(whole_sweep())))
    check(curves.accuracy_curve(summarise(trials())))  # one fraction
    check(curves.accuracy_curve(summarise([trial("elfs", 0, 0.9)])))  # one trial
    check(curves.accuracy_curve(summarise([trial("full", 0, 0.9, 1.0)])))
    dollars = [trial("a$b$", 0, 0.5, f) for f in (0.001, 0.01, 0.5)]
    check(curves.accuracy_curve(summarise(dollars)))  # logarithmic, no mathematics
    with pytest.raises(BadInput):
        curves.accuracy_curve([])


def test_equal_figures_have_equal_bytes_and_leave_matplotlib_alone():
    before = dict(mpl.rcParams)
    rows = summarise(whole_sweep())
    first, second = curves.accuracy_curve(rows), curves.accuracy_curve(rows)
    assert first == second
    assert dict(mpl.rcParams) == before


def test_colours_are_those_of_the_method():
    assert canvas.colours(["random", "elfs"])["elfs"] == canvas.colours(["d2", "elfs", "herding"])["elfs"]
    many = canvas.colours([f"m{i}" for i in range(30)])
    assert len(set(many.values())) == len(canvas.PALETTE)
    six = canvas.colours(["random", "elfs", "d2", "ccs", "herding", "craig"])
    assert len(set(six.values())) == 6


def test_labels_are_moved_apart():
    placed = canvas._apart(np.array([5.0, 5.0, 5.1, 50.0]), 10, 0, 100)
    assert (np.diff(np.sort(placed)) >= 10 - 1e-9).all()
    assert placed.min() >= 0
    assert placed[3] == 50
    assert (np.argsort(placed, kind="stable") == [0, 1, 2, 3]).all()


@pytest.mark.parametrize("higher_is", ["easier", "harder"])
def test_regions_partition_the_samples(higher_is):
    scores = np.array([5.0, 1.0, 3.0, 2.0, 4.0, 3.0])
    parts = regions.regions(scores, [3, 4], higher_is=higher_is)
    low, high = ("too hard", "too easy") if higher_is == "easier" else ("too easy", "too hard")
    assert {name: rows.tolist() for name, rows in parts.items()} == {
        low: [1],
        "kept": [3, 4],
        high: [0],
        "between": [2, 5],
    }
    assert sorted(np.concatenate(list(parts.values()))) == list(range(6))
    assert regions.cutoffs(scores, parts, higher_is) == {low: 2.0, high: 4.0}
    assert regions.cutoffs(scores, regions.regions(scores, range(6)), higher_is) == {}


def test_regions_refuse_bad_input():
    with pytest.raises(BadInput, match=r"scores\[1\] is NaN"):
        regions.regions([0.0, float("nan")], [0])
    with pytest.raises(BadInput, match="kept names row 2 of 2"):
        regions.regions([0.0, 1.0], [2])
    with pytest.raises(BadInput, match="kept is empty"):
        regions.regions([0.0, 1.0], [])


def test_score_histogram():
    scores = np.random.default_rng(0).normal(size=500)
    order = np.argsort(scores)
    picture = bars.score_histogram(scores, {"10 % kept": order[100:150], "50 % kept": order[:250]})
    check(picture)
    assert "100 dropped, too hard, 50 kept, 350 dropped, too easy" in picture.alt
    check(bars.score_histogram(scores, {"random": np.arange(0, 500, 2)}, higher_is="harder"))
    constant = bars.score_histogram(np.ones(10), {"all": np.arange(10)})
    check(constant)
    assert "same for every sample" in constant.caption
    infinite = bars.score_histogram(
        [0.0, 1.0, 2.0, np.inf], {"k": [1]}, score_name="forgetting", higher_is="harder"
    )
    assert "Not drawn: 1 with an infinite score." in infinite.caption
    with pytest.raises(BadInput, match="no finite value"):
        bars.score_histogram([np.inf], {"k": [0]})
    with pytest.raises(BadInput, match="selections is empty"):
        bars.score_histogram(scores, {})


def test_class_balance():
    picture = bars.class_balance(
        np.array([0, 0, 1]), ["cat", "dog", "bird"], dataset=np.array([0, 1, 2, 2]), kind="pseudo-labels"
    )
    check(picture)
    assert "1 of 3 classes has no sample" in picture.caption
    assert "0 % to 66.7 %" in picture.caption
    check(bars.class_balance(np.zeros(4, np.int64), ["only"]))
    check(
        bars.class_balance(np.arange(200) % 100, [str(i) for i in range(100)], dataset=np.arange(1000) % 100)
    )
    with pytest.raises(BadInput, match=r"coreset\[1\] is not one of 2 classes"):
        bars.class_balance(np.array([0, 2]), ["a", "b"])
    with pytest.raises(BadInput, match="coreset is empty"):
        bars.class_balance(np.array([], np.int64), ["a"])


def test_head_losses():
    losses = np.linspace(0, -2, 20)[:, None] * np.linspace(0.8, 1, 5)
    picture = curves.head_losses(losses, 4)
    check(picture)
    assert "head 4" in picture.caption
    check(curves.head_losses(np.zeros((1, 1)), 0))
    with pytest.raises(BadInput, match="chosen is 5"):
        curves.head_losses(losses, 5)
    with pytest.raises(BadInput, match=r"losses\[3, 1\] is nan"):
        curves.head_losses(np.where(np.arange(100).reshape(20, 5) == 16, np.nan, losses), 0)


def test_clustering_bars():
    picture = bars.clustering_bars(
        {"cluster heads": {"accuracy": 0.946, "ari": -0.02}, "k-means": {"accuracy": 0.83}}
    )
    check(picture)
    assert "accuracy 94.6" in picture.alt
    check(bars.clustering_bars({"k-means": {"nmi": 0.0}}))
    with pytest.raises(BadInput, match="metrics is empty"):
        bars.clustering_bars({})


def test_search_curve():
    picture = curves.search_curve([0.2, 0.0, 0.1], [[0.9, 0.92], [0.7, 0.7], [0.8, 0.81]], 0.2)
    check(picture)
    assert "0.2 was chosen out of 3 values" in picture.caption
    assert "70.0 % to 91.0 %" in picture.alt
    check(curves.search_curve([0.3], [[0.5]], 0.3))
    with pytest.raises(BadInput, match="none of the tried values"):
        curves.search_curve([0.1], [[0.5]], 0.3)
    with pytest.raises(BadInput, match="2 entries for 1 values"):
        curves.search_curve([0.1], [[0.5], [0.6]], 0.1)


def test_training_curves():
    columns = {
        "epoch": [1, 2, 1, 2],
        "split": ["train", "train", "test", "test"],
        "loss": [2.0, 0.01, None, None],
        "accuracy": [None, None, 0.4, 0.6],
    }
    picture = curves.training_curves([("random", columns), ("elfs", columns), ("elfs", columns)])
    check(picture)
    assert "elfs ends at 60 % test accuracy" in picture.alt
    assert "one line per seed" in picture.caption
    single = {name: values[2:3] for name, values in columns.items()}
    check(curves.training_curves([("elfs", single)]))
    with pytest.raises(BadInput, match="no column 'loss'"):
        curves.training_curves([("elfs", {"epoch": [1], "split": ["train"], "accuracy": [0.1]})])
    with pytest.raises(BadInput, match="runs is empty"):
        curves.training_curves([])


# montages


def test_small_images_are_enlarged_without_smoothing():
    image = np.zeros((1, 8, 8), np.uint8)
    image[0, ::2, ::2] = 255
    with Image.open(io.BytesIO(montage([Group("kept", image, [["id 0"]])]))) as sheet:
        pixels = np.asarray(sheet.convert("L"))
    enlarged = np.kron(image[0], np.ones((12, 12), np.uint8))
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (96, 96))[:60, :60]
    assert (np.abs(windows.astype(int) - enlarged).max((2, 3)) == 0).any()


def test_montage_of_noise_and_photographs_stays_small():
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    assert len(montage([Group("noise", noise, [["id"]] * 60)])) <= 300_000
    photographs = [
        Image.fromarray(generator.integers(0, 256, (200, 100 + 20 * (i % 9), 3), dtype=np.uint8))
        for i in range(40)
    ]
    photographs[0] = photographs[0].convert("L")
    png = montage([Group("photographs", photographs, [["id", "class"]] * 40)], max_bytes=120_000)
    assert len(png) <= 120_000
    png_size(png)
    with pytest.raises(BadInput, match="do not fit into 1,000 bytes"):
        montage([Group("noise", noise, [["id"]] * 60)], max_bytes=1000)


def test_montage_refuses_bad_input():
    image = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(BadInput, match="2 images and 1 captions"):
        montage([Group("kept", image, [["id"]])])
    with pytest.raises(BadInput, match="uint8"):
        montage([Group("kept", image.astype(np.float32), [["id"]] * 2)])
    with pytest.raises(BadInput, match="no image to show"):
        montage([Group("kept", image[:0], [])])


def test_selection_montage_shows_the_ends_of_the_scores():
    scores = np.arange(100.0)
    asked: list[list[int]] = []

    def read(rows):
        asked.append(rows.tolist())
        return np.zeros((len(rows), 8, 8, 1), np.uint8)

    picture = selection_montage(
        read,
        np.arange(20, 60),
        np.arange(100),
        scores=scores,
        labels=np.zeros(100, int),
        classes=["cat"],
        count=5,
    )
    png_size(picture.png)
    assert asked == [[0, 1, 2, 3, 4], [20, 30, 40, 49, 59], [99, 98, 97, 96, 95]]
    assert "dropped as too hard: 5 of 20, lowest AUM" in picture.alt
    asked.clear()
    selection_montage(read, np.arange(20, 60), np.arange(100), scores=scores, higher_is="harder", count=2)
    assert asked == [[99, 98], [59, 20], [0, 1]]
    asked.clear()
    plain = selection_montage(
        read, np.arange(0, 100, 2), [f"sample-{i}" for i in range(100)], labels=np.full(100, -1), count=3
    )
    assert asked == [[0, 48, 98], [1, 49, 99]]
    assert "label" in plain.caption
    with pytest.raises(BadInput, match="scores has 3 entries for 100 ids"):
        selection_montage(read, [0], np.arange(100), scores=[1, 2, 3])


# HTML and Markdown


class Reader(HTMLParser):
    """Collects tags, loaded addresses and text; complains of unbalanced tags."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def report() -> Report:
    runs = whole_sweep()
    rows = summarise(runs)
    curve = curves.accuracy_curve(rows)
    noise = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    sheet = canvas.Picture(montage([Group("kept", noise, [["id"]] * 30)]), 'a "sheet" of <samples>')
    return Report(
        title="ELFS on <CIFAR-10> & friends",
        subtitle="<script>alert(1)</script>",
        verdicts=verdicts(rows, method="elfs"),
        table=tables.accuracy_table(rows),
        sections=[
            Section("Accuracy", "First.\n\nSecond & last.", [curve], tables.difference_table(rows)),
            Section("Kept | dropped", "", [sheet]),
            Section("Nothing to show"),
        ],
        provenance={
            "Parameters": {
                "fractions": (0.1, 0.3),
                "mis_ratio": {"0.1": 0.4},
                "balanced": True,
                "limit": None,
                "note": "<b>x</b>",
            },
            "Steps": tables.Table(("step", "seconds", "cache"), (("embed", "12", "hit"),)),
        },
        files={"coreset": ".winnow/coreset/<digest>.parquet"},
        csv=tables.to_csv(runs),
    )


def test_html_is_self_contained_escaped_and_whole(report):
    page = render_report(report)
    read = Reader(page)
    addresses = [
        value for _, attributes in read.tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert addresses
    assert all(address and address.startswith(("data:", "#")) for address in addresses)
    assert not {"script", "link", "iframe", "b"} & {tag for tag, _ in read.tags}
    assert "url(" not in page
    assert "@import" not in page
    for said in (
        report.title,
        report.subtitle,
        "<b>x</b>",
        "<digest>",
        "0.1, 0.3",
        "yes",
        "none",
        "hit",
        *(section.heading for section in report.sections),
    ):
        assert said in read.text
    assert "First." in read.text
    assert "Second & last." in read.text
    for verdict in report.verdicts:
        assert verdict in read.text.replace("\u00a0", " ")
    images = [attributes for tag, attributes in read.tags if tag == "img"]
    assert [image["alt"] for image in images] == [
        report.sections[0].pictures[0].alt,
        'a "sheet" of <samples>',
    ]
    assert images[0]["src"].startswith("data:image/svg+xml;base64,")
    assert images[1]["src"].startswith("data:image/png;base64,")
    assert base64.b64decode(images[1]["src"].partition(",")[2]) == report.sections[1].pictures[0].png
    headings = [tag for tag, _ in read.tags if tag in ("h1", "h2", "h3")]
    assert headings == ["h1", "h2", "h2", "h2", "h2", "h3", "h3", "h2"]
    targets = {attributes["id"] for _, attributes in read.tags if attributes.get("id")}
    assert {address[1:] for address in addresses if address.startswith("#")} <= targets
    link = next(attributes["href"] for tag, attributes in read.tags if attributes.get("download"))
    assert base64.b64decode(link.partition(",")[2]).decode() == report.csv


def test_html_of_a_bare_report():
    read = Reader(render_report(Report("Bare")))
    assert "Bare" in read.text
    assert not [tag for tag, _ in read.tags if tag in ("table", "nav", "img", "a")]
    with pytest.raises(BadInput, match="title is empty"):
        Report(" ")
    with pytest.raises(BadInput, match=r"sections\[0\] has no heading"):
        Report("x", sections=[Section("")])


def embedded(markdown: str) -> list[bytes]:
    return [
        base64.b64decode(content) for content in re.findall(r"\(data:image/png;base64,([^)]*)\)", markdown)
    ]


def test_markdown_has_everything_and_is_escaped(report):
    text = markdown_report(report)
    assert len(text.encode()) <= 800_000
    assert "# ELFS on &lt;CIFAR-10&gt; &amp; friends" in text
    assert "<script" not in text
    assert embedded(text) == [section.pictures[0].png for section in report.sections[:2]]
    for said in (
        r"## Kept \| dropped",
        "## Nothing to show",
        "| fractions | 0.1, 0.3 |",
        "## Files",
        "| embed | 12 | hit |",
    ):
        assert said in text


@pytest.mark.parametrize("limit", [100_000, 60_000, 40_000, 20_000, 6_000, 3_500, 1_500])
def test_markdown_stays_below_its_limit(report, limit):
    text = markdown_report(report, max_bytes=limit)
    assert len(text.encode()) <= limit
    for content in embedded(text):
        png_size(content)
    assert "# ELFS on" in text
    assert report.verdicts[0].split(";")[0].replace("<", "&lt;") in text


def test_markdown_gives_up_the_largest_figure_first(report):
    whole = markdown_report(report)
    sizes = [len(content) for content in embedded(whole)]
    assert sizes[1] > sizes[0]  # the sheet of noise is the largest
    text = markdown_report(report, max_bytes=len(whole.encode()) - 1000)
    curve, sheet = embedded(text)
    assert curve == report.sections[0].pictures[0].png
    assert len(sheet) < sizes[1]
    small = markdown_report(report, max_bytes=6_000)
    assert embedded(small) == []
    assert "Figure left out" in small
    with pytest.raises(BadInput, match="max_bytes is 50"):
        markdown_report(report, max_bytes=50)
