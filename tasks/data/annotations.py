"""One label per image out of what annotation tools export: Label Studio, CVAT, COCO, YOLO."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from winnow.tasks.errors import BadInput

__all__ = ["SUFFIXES", "annotated", "resolved"]

SUFFIXES = (".json", ".xml")
Pairs = Iterator[tuple[str, list[str]]]  # an image, and the labels that it was given


def annotated(path: str) -> tuple[list[str], list[str]]:
    """Images and their labels, those that were labelled only.

    Args:
        path: Label Studio's JSON or COCO's (``.json``), CVAT's ``annotations.xml``, or a folder of YOLO's
            label files (``.txt``), whose classes a ``classes.txt`` or ``data.yaml`` in or above it names.

    Raises:
        BadInput: it is none of these, or an image has several labels; names it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "coco.json")
    ...     images, categories = [{"id": 7, "file_name": "a.png"}], [{"id": 1, "name": "cat"}]
    ...     annotations = [{"image_id": 7, "category_id": 1}]
    ...     content = {"images": images, "categories": categories, "annotations": annotations}
    ...     _ = file.write_text(json.dumps(content))
    ...     annotated(str(file))
    (['a.png'], ['cat'])
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise BadInput(f"{path}: no such file.", remedy="give what the annotation tool exported")
    try:
        pairs = list(_yolo(file) if file.is_dir() else _cvat(file) if file.suffix == ".xml" else _json(file))
    except (ValueError, KeyError, TypeError, AttributeError, ElementTree.ParseError) as error:
        raise BadInput(
            f"{path} is no export of Label Studio, CVAT, COCO or YOLO: {type(error).__name__} {error}.",
            remedy="export it again, or write a table with columns path and label",
        ) from error
    names, labels = [], []
    for name, given in pairs:
        words = list(dict.fromkeys(given))
        if len(words) > 1:
            raise BadInput(
                f"{path}: {name} has several labels: {', '.join(words[:5])}.",
                remedy="one label per image is needed here",
            )
        if words:
            names.append(name)
            labels.append(words[0])
    if not names:
        raise BadInput(f"{path} has no labelled image.")
    return names, labels


def _json(file: Path) -> Pairs:
    content = json.loads(file.read_text(encoding="utf-8"))
    return _coco(content) if isinstance(content, dict) else _label_studio(content)


def _coco(content: dict[str, Any]) -> Pairs:
    categories = {category["id"]: str(category["name"]) for category in content["categories"]}
    given: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        given[annotation["image_id"]].append(categories[annotation["category_id"]])
    return ((str(image["file_name"]), given[image["id"]]) for image in content["images"])


def _label_studio(content: list[dict[str, Any]]) -> Pairs:
    """Tasks with ``annotations``, or the short form (JSON-MIN), whose labels are strings beside the image."""
    for task in content:
        if "data" not in task:
            words = [task[key] for key in ("choice", "label", "class") if isinstance(task.get(key), str)]
            yield _image_in(task), words
            continue
        done = [a for a in task.get("annotations", ()) if not a.get("was_cancelled")]
        results = (result["value"] for annotation in done for result in annotation["result"])
        yield _image_in(task["data"]), [str(word) for value in results for word in value.get("choices", ())]


def _image_in(data: dict[str, Any]) -> str:
    """The file that a task is about; an address of a local file stands for that file."""
    url = str(data.get("path") or data.get("image") or data["file"])
    return unquote(url.partition("?d=")[2] or url)


def _cvat(file: Path) -> Pairs:
    root = ElementTree.parse(file).getroot()
    for image in root.iter("image"):
        kinds = ("tag", "box", "polygon", "mask")
        yield image.attrib["name"], [shape.attrib["label"] for shape in image if shape.tag in kinds]


def _yolo(folder: Path) -> Pairs:
    names = _class_names(folder)
    files = sorted(path for path in folder.rglob("*.txt") if path.name != "classes.txt")
    if not files:
        raise ValueError("there is no label file (.txt)")
    for file in files:
        numbers = [
            int(line.split()[0]) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()
        ]
        stem = file.relative_to(folder).with_suffix("").as_posix()
        yield stem, [names.get(number, str(number)) for number in numbers]


def _class_names(folder: Path) -> dict[int, str]:
    for place in (folder, folder.parent, folder.parent.parent):
        if (file := place / "classes.txt").is_file():
            return dict(enumerate(file.read_text(encoding="utf-8").split("\n")))
        if (file := place / "data.yaml").is_file():
            import yaml

            names = yaml.safe_load(file.read_text(encoding="utf-8"))["names"]
            return (
                dict(enumerate(names)) if isinstance(names, list) else {int(k): v for k, v in names.items()}
            )
    return {}


def resolved(path: str, names: Iterable[str], sources: Sequence[str]) -> list[str]:
    """The sample that each annotated image is: by its path, by the end of it, or by its name without suffix.

    Raises:
        BadInput: none, or several, are meant.

    >>> resolved("x.json", ["/data/pool/a.png", "b"], ["a.png", "sub/b.png"])
    ['a.png', 'sub/b.png']
    """
    exact = set(sources)
    ends: dict[str, list[str]] = {}
    for source in sources:
        for key in {os.path.basename(source), os.path.splitext(os.path.basename(source))[0]}:
            ends.setdefault(key, []).append(source)
    found = []
    for name in names:
        if name in exact:
            found.append(name)
            continue
        alike = ends.get(os.path.basename(name), [])
        longer = [source for source in alike if f"/{name}".endswith(f"/{source}")] or alike
        if len(longer) != 1:
            raise BadInput(
                f"{path}: {name} is {'several samples' if longer else 'not among the samples'}"
                f"{': ' + ', '.join(longer[:3]) if longer else ''}.",
                remedy="write paths as the pool has them",
            )
        found.append(longer[0])
    return found
