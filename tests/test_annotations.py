"""What annotation tools export, read back as labels; Winnow's own lists among them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from winnow.tasks import lists
from winnow.tasks.data.annotations import annotated
from winnow.tasks.data.load import load_split
from winnow.tasks.data.rows import listed
from winnow.tasks.errors import BadInput

NAMES = ["a 1.png", "sub/b.png", "c.png"]
LABELS = ["cat", "dog", "cat"]


@pytest.fixture
def pool(tmp_path):
    for level, name in enumerate(NAMES):
        path = tmp_path / "pool" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), level, np.uint8)).save(path)
    return tmp_path / "pool"


def rows():
    return [{"path": name, "rank": rank, "score": 1.0, "why": "x"} for rank, name in enumerate(NAMES)]


def export(pool, folder, tool):
    """What a tool exports after labelling the tasks that Winnow wrote for it."""
    if tool == "yolo":
        (folder / "labels" / "sub").mkdir(parents=True)
        (folder / "classes.txt").write_text("cat\ndog\n")
        for name, label in zip(NAMES, LABELS, strict=True):
            stem = name.rpartition(".")[0]
            number = ("cat", "dog").index(label)
            (folder / "labels" / f"{stem}.txt").write_text(
                f"{number} 0.5 0.5 1 1\n{number} 0.1 0.1 0.1 0.1\n"
            )
        return folder / "labels"
    suffix = lists.FORMATS[tool][0]
    file = folder / f"{tool}{suffix}"
    lists.write_list(rows(), file, kind=tool, folder=str(pool))
    if tool == "cvat":
        text = file.read_text()
        for name, label in zip(NAMES, LABELS, strict=True):
            text = text.replace(
                f'name="{name}" />', f'name="{name}"><tag label="{label}" source="manual" /></image>'
            )
        file.write_text(text)
        return file
    content = json.loads(file.read_text())
    if tool == "coco":
        content["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        ids = {image["file_name"]: image["id"] for image in content["images"]}
        content["annotations"] = [
            {"id": row, "image_id": ids[name], "category_id": 1 + (label == "dog"), "bbox": [0, 0, 1, 1]}
            for row, (name, label) in enumerate(zip(NAMES, LABELS, strict=True))
        ]
    else:
        for task, label in zip(content, LABELS, strict=True):
            choice = {"type": "choices", "value": {"choices": [label]}, "from_name": "choice"}
            cancelled = {"was_cancelled": True, "result": [{"value": {"choices": ["wrong"]}}]}
            task["annotations"] = [cancelled, {"result": [choice]}]
            del task["data"]["path"]  # only the image's address is certain to come back
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("tool", ["label-studio", "cvat", "coco", "yolo"])
def test_an_export_comes_back_as_labels(pool, tmp_path, tool):
    file = export(pool, tmp_path, tool)
    split = load_split(f"pool:{pool}", labels=str(file))
    assert split.classes == ("cat", "dog")
    words = dict(zip(NAMES, LABELS, strict=True))
    assert [split.classes[label] for label in split.truth] == [words[name] for name in split.sources]
    assert sorted(listed(str(file), split.ids, list(split.sources))) == [0, 1, 2], (
        "it lists what is labelled, too"
    )


def test_label_studio_in_short(pool, tmp_path):
    file = tmp_path / "min.json"
    content = [
        {"image": f"/data/local-files/?d={pool}/{name}".replace(" ", "%20"), "choice": label}
        for name, label in zip(NAMES, LABELS, strict=True)
    ]
    file.write_text(json.dumps(content))
    assert load_split(f"pool:{pool}", labels=str(file)).classes == ("cat", "dog")


CAT = {"id": 1, "name": "cat"}
COCO = {"images": [{"id": 1, "file_name": "c.png"}], "categories": [CAT], "annotations": []}
ONE = [{"image_id": 1, "category_id": 1}]
BAD = {
    "nameless": ({**COCO, "annotations": ONE, "categories": [{"id": 1}]}, "no export"),
    "none": (COCO, "has no labelled image"),
    "stranger": (
        {**COCO, "images": [{"id": 1, "file_name": "z.png"}], "annotations": ONE},
        r"z\.png is not among the samples",
    ),
    "two": (
        {
            **COCO,
            "categories": [CAT, {"id": 2, "name": "dog"}],
            "annotations": [*ONE, {"image_id": 1, "category_id": 2}],
        },
        r"c\.png has several labels: cat, dog",
    ),
    "number": (3, "no export"),
    "words": (["a"], "no export"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_export_is_refused(pool, tmp_path, name):
    content, message = BAD[name]
    file = tmp_path / "x.json"
    file.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=message) as raised:
        load_split(f"pool:{pool}", labels=str(file))
    assert "x.json" in str(raised.value)


def test_damaged_files(tmp_path):
    for name in ("x.json", "x.xml"):
        (tmp_path / name).write_text("<a")
        with pytest.raises(BadInput, match="is no export"):
            annotated(str(tmp_path / name))
    with pytest.raises(BadInput, match="no such file"):
        annotated(str(tmp_path / "gone.json"))
