"""One's own images as a dataset: folders, lists, shards, tables, arrays, and labels from a file."""

from __future__ import annotations

import io
import json
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from winnow.tasks.artifacts import write
from winnow.tasks.data.load import load_split, numbered
from winnow.tasks.data.pools import ids_of
from winnow.tasks.data.task import annotate, labels_of, load
from winnow.tasks.errors import BadInput, MissingData

NAMES = ["a b.png", "ü/deep/10.png", "ü/deep/9.png", "#1.png", "x.PNG"]


def png(level, size=8):
    stream = io.BytesIO()
    Image.fromarray(np.full((size, size), level, np.uint8)).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pool"
    for level, name in enumerate(NAMES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(level))
    return folder


def levels(split):
    return split.images.read(slice(None))[:, 0, 0, 0].tolist()


def test_a_folder_of_any_depth_is_one_unlabelled_pool(folder):
    split = load_split(f"pool:{folder}")
    assert sorted(split.sources) == sorted(NAMES)
    assert split.truth is None
    assert levels(split) == [NAMES.index(source) for source in split.sources]
    position = {source: row for row, source in enumerate(split.sources)}
    assert position["ü/deep/9.png"] < position["ü/deep/10.png"]


def test_ids_stay_when_files_come_and_go(folder):
    before = dict(zip(*(lambda s: (s.sources, s.ids.tolist()))(load_split(f"pool:{folder}")), strict=True))
    (folder / "a b.png").unlink()
    (folder / "0.png").write_bytes(png(9))
    after = load_split(f"pool:{folder}")
    assert {s: i for s, i in zip(after.sources, after.ids.tolist(), strict=True) if s in before} == {
        s: i for s, i in before.items() if s != "a b.png"
    }


def test_class_folders_only_if_asked_for(tmp_path):
    for name in ("cat/1.png", "dog/1.png", "dog/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(0))
    assert load_split(f"pool:{tmp_path}").truth is None
    split = load_split(f"pool:{tmp_path}", class_folders=True)
    assert split.classes == ("cat", "dog")
    assert split.truth.tolist() == [0, 1, 1]
    (tmp_path / "loose.png").write_bytes(png(0))
    with pytest.raises(BadInput, match=r"loose\.png lies in no class folder"):
        load_split(f"pool:{tmp_path}", class_folders=True)


ROWS = [
    {
        "path": name,
        "label": ("cat", "dog")[row % 2],
        "split": "test" if row == 4 else "train",
        "weight": row + 1,
    }
    for row, name in enumerate(NAMES)
]


def write_list(folder, suffix, rows=ROWS):
    path = folder / f"list{suffix}"
    if suffix == ".txt":
        path.write_text("\n".join(row["path"] for row in rows) + "\n\n")
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        separator = {".csv": ",", ".tsv": "\t"}[suffix]
        lines = [separator.join(rows[0]), *(separator.join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl", ".parquet"])
def test_lists_of_paths(folder, suffix):
    path = write_list(folder, suffix)
    split = load_split(f"pool:{path}")
    if suffix == ".txt":
        assert (list(split.sources), split.truth, dict(split.columns)) == (NAMES, None, {})
        return
    assert list(split.sources) == NAMES[:4]
    assert split.classes == ("cat", "dog")
    assert split.truth.tolist() == [0, 1, 0, 1]
    assert split.columns["weight"].tolist() == [1, 2, 3, 4]
    test = load_split(f"pool:{path}", "test")
    assert (list(test.sources), test.truth.tolist(), levels(test)) == (NAMES[4:], [0], [4])
    assert split.ids.tolist() == ids_of(NAMES[:4]).tolist()


def test_a_held_out_share_never_changes_sides(tmp_path):
    for name in range(200):
        (tmp_path / f"{name}.png").write_bytes(png(name))
    first = load_split(f"pool:{tmp_path}", "test", test_fraction=0.2)
    assert 20 < len(first) < 60
    for name in range(200, 240):
        (tmp_path / f"{name}.png").write_bytes(png(0))
    again = load_split(f"pool:{tmp_path}", "test", test_fraction=0.2)
    assert set(first.sources) <= set(again.sources)


@pytest.mark.parametrize("inside", ["struct", "bytes"])
def test_parquet_with_an_image_column(tmp_path, inside):
    content = [png(level) for level in range(20)]
    cells = (
        [{"bytes": c, "path": f"{row}.png"} for row, c in enumerate(content)]
        if inside == "struct"
        else content
    )
    pq.write_table(
        pa.table({"image": cells, "label": [row % 3 for row in range(20)]}),
        tmp_path / "t.parquet",
        row_group_size=6,
    )
    split = load_split(f"pool:{tmp_path}/t.parquet")
    assert levels(split) == list(range(20))
    assert split.sources[11] == ("11.png" if inside == "struct" else "11")
    assert (split.classes, split.truth[:4].tolist()) == (("0", "1", "2"), [0, 1, 2, 0])
    assert levels(load_split(f"pool:{tmp_path}/t.parquet", "test", test_fraction=0.5)) != []
    sums = split.images.checksums()
    assert len(np.unique(sums, axis=0)) == 20


def test_a_folder_of_parquet_parts_is_one_table(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in range(3):
        cells = [{"bytes": png(part * 5 + row), "path": None} for row in range(5)]
        pq.write_table(pa.table({"image": cells}), folder / f"{part}.parquet")
    assert levels(load_split(f"pool:{folder}")) == list(range(15))


def test_shards(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for row in range(6):
            for name, content in ((f"{row:03}.png", png(row)), (f"{row:03}.cls", str(row % 2).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    for variant in (tmp_path, tmp_path / "0.tar", f"{tmp_path}/{{0..0}}.tar"):
        split = load_split(f"pool:{variant}")
        assert levels(split) == list(range(6))
        assert split.truth.tolist() == [0, 1] * 3


def test_urls(tmp_path):
    import fsspec

    for row in range(3):
        with fsspec.open(f"memory://pool/{row}.png", "wb") as file:
            file.write(png(row))
    (tmp_path / "own.png").write_bytes(png(3))
    (tmp_path / "l.txt").write_text("\n".join([*(f"memory://pool/{row}.png" for row in range(3)), "own.png"]))
    split = load_split(f"pool:{tmp_path}/l.txt")
    assert levels(split) == [0, 1, 2, 3]
    (tmp_path / "l.txt").write_text("memory://pool/nothing.png")
    with pytest.raises(BadInput, match=r"memory://pool/nothing\.png\) cannot be read"):
        load_split(f"pool:{tmp_path}/l.txt").images.read([0])
    (tmp_path / "l.txt").write_text("https://example.com/a.png")
    with pytest.raises(MissingData, match=r"https://example\.com/a\.png is not local"):
        load_split(f"pool:{tmp_path}/l.txt", download=False)


def test_arrays_alone_are_a_pool(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((7, 3), np.float32))
    split = load_split(f"pool:{tmp_path}/x.npy")
    assert (len(split), split.sources[6]) == (7, "6")
    with pytest.raises(BadInput, match="holds arrays, no images"):
        split.images.read([0])
    pq.write_table(pa.table({"id": ["a", "b"], "vector": [[1.0], [2.0]]}), tmp_path / "x.parquet")
    assert list(load_split(f"pool:{tmp_path}/x.parquet").sources) == ["a", "b"]
    samples = load(f"pool:{tmp_path}/x.parquet")
    assert (samples.rows, samples.facts["labelled"]) == (2, False)


BAD = {
    "nothing": (None, MissingData, "there is no"),
    "empty folder": ("", BadInput, "there are no images"),
    "l.txt": ("", BadInput, "lists nothing"),
    "l.xml": ("junk", BadInput, r"\.xml suffix; lists are \.txt"),
    "gone.txt": ("a.png\nb.png\n", BadInput, r"row 0 names a\.png, which is not there \(2 such rows\)"),
    "twice.txt": ("a b.png\na b.png\n", BadInput, "listed twice, in rows 0 and 1"),
    "broken.jsonl": ('{"path": "a b.png"}\n{"path":', BadInput, "broken.jsonl, line 2"),
    "array.jsonl": ("[1]\n", BadInput, "line 1 is not an object"),
    "no_paths.jsonl": ('{"name": "a b.png"}', BadInput, "has no column of paths"),
    "half.csv": ("path,label\na b.png,cat\nx.PNG,\n", BadInput, "row 1 has no label, others have"),
    "weights.csv": ("path,weight\na b.png,-1\n", BadInput, "row 0 has weight -1"),
    "words.csv": ("path,weight\na b.png,heavy\n", BadInput, "column weight"),
    "fake.parquet": ("PAR1junk", BadInput, "cannot be read"),
    "all_test.csv": ("path,split\na b.png,test\n", BadInput, "has no split 'train'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pools_are_refused_by_name(folder, name):
    content, error, message = BAD[name]
    path = folder / name
    if content is not None:
        (path.mkdir if name == "empty folder" else lambda: path.write_text(content))()
    with pytest.raises(error, match=message) as raised:
        load_split(f"pool:{path}")
    assert name in str(raised.value)


def test_several_image_columns(tmp_path):
    pq.write_table(pa.table({"left": [png(1)], "right": [png(2)]}), tmp_path / "t.parquet")
    with pytest.raises(BadInput, match=r"several image columns: left, right"):
        load_split(f"pool:{tmp_path}/t.parquet")
    assert levels(load_split(f"pool:{tmp_path}/t.parquet", image_column="right")) == [2]
    with pytest.raises(BadInput, match="Did you mean 'right'"):
        load_split(f"pool:{tmp_path}/t.parquet", image_column="rigth")


# -- labels of one's own -------------------------------------------------------------------------------------


def test_labels_from_a_file_by_path(folder):
    lines = [f"{name},{('dog', 'cat')[row % 2]}" for row, name in enumerate(reversed(NAMES))]
    (folder / "labels.csv").write_text("\n".join(["path,label", *lines, "elsewhere.png,horse"]))
    split = load_split(f"pool:{folder}", labels=f"{folder}/labels.csv")
    assert split.classes == ("cat", "dog", "horse")
    words = {name: ("dog", "cat")[row % 2] for row, name in enumerate(reversed(NAMES))}
    assert [split.classes[label] for label in split.truth] == [words[source] for source in split.sources]


def test_labels_of_a_registered_dataset_keep_its_classes(tmp_path):
    plain = load_split("digits", "train")
    noisy = plain.truth.copy()
    noisy[:10] = 3
    np.save(tmp_path / "noisy.npy", noisy)
    split = load_split("digits", "train", labels=f"{tmp_path}/noisy.npy")
    assert split.classes == plain.classes
    assert split.truth.tolist() == noisy.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na b.png,cat\n", r"id .* of the dataset is missing \(3 more\)"),
        ("path,label\na b.png,cat\na b.png,dog\n", r"id a b\.png appears 2 times"),
        ("path,label\na b.png,\n", "row 0 is null|missing"),
        ("path,note\na b.png,cat\n", "missing"),
    ],
)
def test_labels_that_do_not_fit_are_refused(folder, text, message):
    (folder / "labels.csv").write_text(text)
    with pytest.raises(BadInput, match=message):
        load_split(f"pool:{folder}", labels=f"{folder}/labels.csv")


def test_fractions_are_no_labels(tmp_path):
    np.save(tmp_path / "x.npy", np.linspace(0, 1, 1442))
    with pytest.raises(BadInput, match="labels are fractions"):
        load_split("digits", labels=f"{tmp_path}/x.npy")


def test_labels_are_numbered_in_natural_order():
    names, numbers = numbered(np.array(["c10", "c9", "c10"]))
    assert (names, numbers.tolist()) == (("c9", "c10"), [1, 0, 1])


def test_tasks_read_labels_anew_when_their_file_changes(folder, tmp_path):
    file = tmp_path / "labels.csv"
    options = {"labels": str(file)}
    for words in (("a", "b", "a", "b", "a"), ("b", "a", "b", "a", "b")):
        rows = [f"{name},{word}" for name, word in zip(NAMES, words, strict=True)]
        file.write_text("\n".join(["path,label", *rows]))
        os.utime(file, ns=(hash(words) % 2**60, hash(words) % 2**60))
        samples = load(f"pool:{folder}", labels=True, options=options)
        ids = samples.numpy("id")
        expected = [words[NAMES.index(source)] for source in samples.numpy("source")]
        assert ["ab"[label] for label in labels_of(samples, ids)] == expected
        coreset = write(
            "coreset",
            {
                "id": ids,
                "rank": np.arange(5, dtype=np.int32),
                "weight": np.ones(5, np.float32),
                "label": pa.nulls(5, pa.int32()),
            },
        )
        annotated = annotate(samples, coreset)
        assert ["ab"[label] for label in annotated.numpy("label")] == expected
