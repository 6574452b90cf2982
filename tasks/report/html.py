"""A run's report as one self-contained HTML file, and as Markdown that stays below a size limit."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2
from PIL import Image

from winnow.tasks.errors import BadInput
from winnow.tasks.report.canvas import Picture, compact_png
from winnow.tasks.report.tables import Table, escape_markdown, to_markdown

__all__ = ["Report", "Section", "markdown_report", "packed", "render_report", "unpacked"]

SVG_BYTES = 400_000  # a larger drawing goes in as PNG
LEFT_OUT = "*{} left out to keep this artifact small; the HTML report has {}.*"


@dataclass(frozen=True)
class Section:
    """One section of a report.

    Attributes:
        heading: its title.
        text: plain text; an empty line starts a new paragraph.
        pictures: figures, in order.
        table: a table below the figures.
    """

    heading: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    table: Table | None = None


@dataclass(frozen=True)
class Report:
    """The results of a run and where they come from; every string is plain text and is escaped.

    Attributes:
        title: for example ``"ELFS on CIFAR-10"``.
        subtitle: for example dataset, embedder and date.
        verdicts: the results in sentences, from :func:`winnow.tasks.report.verdicts.verdicts`.
        table: the main table.
        sections: the rest, in order.
        provenance: heading (``"Parameters"``, ``"Artifacts"``, ``"Steps"``, …) to names and values, or to a
            table.
        files: what each file is, and where it lies.
        csv: the numbers to download, from :func:`winnow.tasks.report.tables.to_csv`; empty for none.

    Raises:
        BadInput: an empty title, or a section without a heading.
    """

    title: str
    subtitle: str = ""
    verdicts: Sequence[str] = ()
    table: Table | None = None
    sections: Sequence[Section] = ()
    provenance: Mapping[str, Mapping[str, Any] | Table] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    csv: str = ""

    def __post_init__(self) -> None:
        if not self.title.strip():
            raise BadInput("title is empty.")
        for i, section in enumerate(self.sections):
            if not section.heading.strip():
                raise BadInput(f"sections[{i}] has no heading.")


def packed(sections: Sequence[Section]) -> dict[str, bytes]:
    """Sections as files by name: their texts and tables as JSON, and the pictures.

    >>> section = Section("Scores", "AUM & co.", table=Table(("method", "10 %"), (("random", "90.0"),)))
    >>> unpacked(packed([section])) == [section]
    True
    """
    files: dict[str, bytes] = {}
    content = []
    for section in sections:
        pictures = []
        for picture in section.pictures:
            stem = f"picture-{len(files)}"
            pictures.append({"file": stem, "alt": picture.alt, "caption": picture.caption})
            files[f"{stem}.png"] = picture.png
            if picture.svg is not None:
                files[f"{stem}.svg"] = picture.svg
        table = section.table and {**vars(section.table), "bold": sorted(section.table.bold)}
        content.append(
            {"heading": section.heading, "text": section.text, "pictures": pictures, "table": table}
        )
    return {"sections.json": json.dumps(content, ensure_ascii=False).encode(), **files}


def unpacked(files: Mapping[str, bytes]) -> list[Section]:
    """The sections that ``packed`` turned into files."""
    sections = []
    for part in json.loads(files["sections.json"]):
        pictures = tuple(
            Picture(
                files[f"{picture['file']}.png"],
                picture["alt"],
                files.get(f"{picture['file']}.svg"),
                picture["caption"],
            )
            for picture in part["pictures"]
        )
        table = part["table"] and Table(
            tuple(part["table"]["columns"]),
            tuple(map(tuple, part["table"]["rows"])),
            part["table"]["caption"],
            frozenset(map(tuple, part["table"]["bold"])),
        )
        sections.append(Section(part["heading"], part["text"], pictures, table))
    return sections


def _said(value: Any) -> str:
    """A value of the provenance as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(map(_said, value)) or "none"
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _source(picture: Picture) -> str:
    if picture.svg is not None and len(picture.svg) <= SVG_BYTES:
        return _uri(picture.svg, "image/svg+xml")
    return _uri(picture.png, "image/png")


def _size(picture: Picture) -> tuple[int, int]:
    with Image.open(io.BytesIO(picture.png)) as image:
        return image.size


def _paragraphs(text: str) -> list[str]:
    return [" ".join(block.split()) for block in text.split("\n\n") if block.strip()]


def _tight(text: str) -> str:
    """The text with no-break spaces between numbers and their signs or units."""
    text = re.sub(r" ± (?=\d)", "\u00a0±\u00a0", text)
    return re.sub(r"\bp ([<=]) (?=\d)", "p\u00a0\\1\u00a0", re.sub(r"(?<=\d) (?=%)", "\u00a0", text))


def render_report(report: Report) -> str:
    """The report as one HTML file, with styles and images inside, no scripts and no network requests.

    Drawings are embedded as SVG, photographs as PNG. The page works in light and dark mode, on a phone, on
    paper and with a screen reader.

    >>> page = render_report(Report("ELFS on <digits>", sections=[Section("Scores", "AUM & co.")]))
    >>> "ELFS on &lt;digits&gt;" in page, "AUM &amp; co." in page, "://" in page
    (True, True, False)
    """
    template = resources.files("winnow.tasks.report").joinpath("templates/report.html.j2")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(said=_said, paragraphs=_paragraphs, source=_source, size=_size, tight=_tight)
    environment.tests["table"] = lambda value: isinstance(value, Table)
    numbers = _uri(report.csv.encode(), "text/csv;charset=utf-8")
    return environment.from_string(template.read_text(encoding="utf-8")).render(report=report, csv=numbers)


def _picture_markdown(picture: Picture, png: bytes | None) -> str:
    alt = escape_markdown(picture.alt)
    if png is None:
        return f"{LEFT_OUT.format('Figure', 'it')} {alt}"
    caption = f"\n\n{escape_markdown(picture.caption)}" if picture.caption else ""
    return f"![{alt}]({_uri(png, 'image/png')}){caption}"


def _pairs_markdown(values: Mapping[str, Any]) -> str:
    rows = [(escape_markdown(key), escape_markdown(_said(value))) for key, value in values.items()]
    return "\n".join(["| | |", "| :--- | :--- |", *(f"| {key} | {value} |" for key, value in rows)])


def _smaller(png: bytes, step: int) -> bytes | None:
    """The figure with fewer colours, then also at half or a third of its size; None when no step is left."""
    if step > 3:
        return None
    with Image.open(io.BytesIO(png)) as image:
        scale, palette = ((1, 48), (2, 48), (3, 32))[step - 1]
        width, height = (max(1, side // scale) for side in image.size)
        small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        return compact_png(small, palette)


def markdown_report(report: Report, max_bytes: int = 800_000) -> str:
    """The report as Markdown with inline PNGs, for a Prefect markdown artifact.

    While the text is above the limit, the largest figure is reduced to fewer colours, then in size, then
    replaced by a note. If that is not enough, the last blocks (files, provenance, sections) are left out.

    Args:
        report: what to write.
        max_bytes: limit of the text, as UTF-8.

    Returns:
        Markdown of at most ``max_bytes``.

    Raises:
        BadInput: not even the title and the verdicts fit.

    >>> print(markdown_report(Report("ELFS on digits", verdicts=["At 10 % kept: beats random."])))
    # ELFS on digits
    <BLANKLINE>
    - At 10 % kept: beats random.
    """
    head = [f"# {escape_markdown(report.title)}"]
    if report.subtitle:
        head.append(escape_markdown(report.subtitle))
    if report.verdicts:
        head.append("\n".join(f"- {escape_markdown(verdict)}" for verdict in report.verdicts))
    blocks: list[str | Picture] = []
    if report.table is not None:
        blocks.append(to_markdown(report.table))
    for section in report.sections:
        lead = "\n\n".join(
            [f"## {escape_markdown(section.heading)}", *map(escape_markdown, _paragraphs(section.text))]
        )
        blocks += [lead, *section.pictures]
        if section.table is not None:
            blocks.append(to_markdown(section.table))
    for heading, values in report.provenance.items():
        body = to_markdown(values) if isinstance(values, Table) else _pairs_markdown(values)
        blocks.append(f"## {escape_markdown(heading)}\n\n{body}")
    if report.files:
        blocks.append(f"## Files\n\n{_pairs_markdown(report.files)}")

    pictures = {i: block for i, block in enumerate(blocks) if isinstance(block, Picture)}
    pngs: dict[int, bytes | None] = {i: picture.png for i, picture in pictures.items()}
    steps = dict.fromkeys(pictures, 0)
    written = {
        i: block if isinstance(block, str) else _picture_markdown(block, block.png)
        for i, block in enumerate(blocks)
    }

    def length() -> int:
        return sum(len(text.encode()) + 2 for text in (*head, *written.values())) - 2

    while length() > max_bytes and any(pngs.values()):
        i = max((i for i in pngs if pngs[i] is not None), key=lambda i: len(pngs[i] or b""))
        steps[i] += 1
        candidate = _smaller(pictures[i].png, steps[i])
        if candidate is None or len(candidate) < len(pngs[i] or b""):
            pngs[i] = candidate
            written[i] = _picture_markdown(pictures[i], candidate)
    note = LEFT_OUT.format("The rest is", "all of it")
    cut = False
    while written and length() + (len(note) + 2) * cut > max_bytes:
        written.popitem()
        cut = True
    text = "\n\n".join([*head, *written.values(), *([note] if cut else [])])
    if len(text.encode()) > max_bytes:
        raise BadInput(
            f"max_bytes is {max_bytes:,}; the title and the verdicts alone take {len(text.encode()):,}.",
            remedy="give a larger max_bytes",
        )
    return text
