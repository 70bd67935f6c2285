"""What is made of the notebooks and a few lists: the ledger of claims, the poster, and README.md's tables.

A code cell whose output shows a claim of the webinar has the claim's number among its tags, as in ["W8"].
Every function takes the folder of the project, so that a test can give it a copy.
"""

import json
import os
import re
import tomllib
from collections import Counter
from pathlib import Path
from urllib.parse import quote

from kit import ROOT, images, lessons, poster

CLAIM = r"W\d+"  # a tag
NOT_SHOWN = "not shown yet"  # the verdict on a claim whose lesson is still to come


class Lesson:
    """What the tables tell of a lesson.

    Attributes:
        file: the name of its notebook; its first two digits are the `number`.
        title: its first line: "3. State outlives whoever holds it".
        minutes: what a learner needs, as the first cell says.
        named: the claims that the first cell names.
        shown: a (claim, heading, number of the code cell, whether that has an output) for each tag.
    """

    def __init__(self, path: Path):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        opening = "".join(cells[0]["source"])
        self.file, self.number = path.name, path.stem[:2]
        self.title = opening.splitlines()[0].removeprefix("# ")
        self.minutes = int(re.search(r"(\d+) minutes", opening)[1])
        self.named = set(re.findall(rf"\b{CLAIM}\b", opening))
        self.shown, heading, count = [], "", 0
        for cell in cells:
            count += cell["cell_type"] == "code"
            if found := re.match(r"###? (.+)", "".join(cell["source"])):
                heading = found[1]
            claims = [tag for tag in cell["metadata"].get("tags", []) if re.fullmatch(CLAIM, tag)]
            self.shown += [(claim, heading, count, bool(cell.get("outputs"))) for claim in claims]


def all_lessons(root: Path = ROOT) -> list[Lesson]:
    """The lessons that there are, in order."""
    return [Lesson(path) for path in lessons.notebooks(root / "notebooks").values()]


def read(name: str, root: Path = ROOT) -> dict:
    """One of the lists in notebooks/: claims, lessons, minutes."""
    return tomllib.loads((root / "notebooks" / f"{name}.toml").read_text(encoding="utf-8"))


def made(root: Path = ROOT) -> dict[Path, str]:
    """The files that are made, whole or in part, with what they should hold."""
    readme, matrix = root / "README.md", root / "notebooks/survival.toml"
    tables = {"lessons": lesson_table(root), "follow-along": follow_along(root)}
    return {
        root / "notebooks/ledger.md": claim_ledger(root),
        root / "slides/survival.svg": poster.draw(matrix.read_text(encoding="utf-8"), images.NODE["version"]),
        readme: with_tables(readme.read_text(encoding="utf-8"), tables),
    }


def write(root: Path = ROOT) -> list[str]:
    """Make the files anew; returns the names of those that have changed."""
    stale = {path: text for path, text in made(root).items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
    return [str(path.relative_to(root)) for path in stale]


def table(*rows: list[str]) -> str:
    """A table in Markdown, its head first."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def with_tables(text: str, tables: dict[str, str]) -> str:
    """The text with each table in its place: between <!-- name --> and <!-- /name -->."""
    for name, lines in tables.items():
        before, after = text.split(f"<!-- {name} -->")[0], text.split(f"<!-- /{name} -->")[1]
        text = f"{before}<!-- {name} -->\n\n{lines}\n\n<!-- /{name} -->{after}"
    return text


# ── The ledger ────────────────────────────────────────────────────────────────────────────────────────────────────


def claim_ledger(root: Path = ROOT) -> str:
    """All claims, a table for each part of the webinar: claim, verdict, nuance, and where that is shown."""
    there, claims = all_lessons(root), read("claims", root)
    rows = {name: row(name, claim, there) for name, claim in claims.items()}
    heads = ["", "the webinar says", "on a cluster it", "but know", "see for yourself"]
    tables = []
    for part, title in read("lessons", root)["parts"].items():
        of_it = [rows[name] for name, claim in claims.items() if claim["part"] == int(part)]
        tables.append(f"## Part {part}: {title}\n\n{table(heads, *of_it)}\n")
    verdicts = Counter(verdict for _, _, verdict, *_ in rows.values())
    return (
        "<!-- Made by scripts/refresh --tables of claims.toml and the tags of the notebooks' cells. -->\n\n"
        "# What became of the webinar's claims\n\n"
        f"Tried on Kubernetes {images.NODE['version']}. The last column names lesson, heading, and code cells,\n"
        "counted from the top: what those print is the witness.\n\n"
        f"Of {len(rows)} claims: {', '.join(f'{count} × {words}' for words, count in verdicts.most_common())}.\n\n"
        + "\n".join(tables)
    )


def row(name: str, claim: dict, there: list[Lesson]) -> list[str]:
    """A claim's row; until a lesson shows it, it has no verdict."""
    places: dict = {}
    for lesson in there:
        for shown, heading, count, _ in lesson.shown:
            if shown == name:
                link = f"[{int(lesson.number)}, {heading}]({lesson.file}{anchor(heading)})"
                places.setdefault(link, []).append(f"{count}")
    verdict = [f"**{claim['verdict']}**", claim["nuance"]] if places else [NOT_SHOWN, ""]
    return [name, claim["claim"], *verdict, "<br>".join(f"{link}: {', '.join(of)}" for link, of in places.items())]


def anchor(heading: str) -> str:
    """Where JupyterLab finds a heading in its notebook."""
    return "#" + quote(heading.replace("`", "").replace(" ", "-"), safe="?,")


# ── README.md ─────────────────────────────────────────────────────────────────────────────────────────────────────


def lesson_table(root: Path = ROOT) -> str:
    """A row for each lesson; with what its replay takes, once that has been measured."""
    told, measured = read("lessons", root), read("minutes", root)
    rows = [["lesson", "what your cluster will show you", "webinar", "minutes"]]
    for lesson in all_lessons(root):
        of_it = told[lesson.number]
        part = f"part {of_it['part']}" if "part" in of_it else ""
        rows.append([f"[{lesson.title}](notebooks/{lesson.file})", of_it["shows"], part, f"{lesson.minutes}"])
        if measured:
            seconds = measured["seconds"].get(lesson.number)
            rows[-1].append(f"{seconds:.0f} s" if seconds else "")
    if measured:
        rows[0].append(f"replay, {measured['cores']} cores")
    return table(*rows)


def follow_along(root: Path = ROOT) -> str:
    """For each part of the webinar its lessons, with the headings under which claims are shown, and which claims."""
    told, lines = read("lessons", root), []
    for part, title in told["parts"].items():
        mine = [lesson for lesson in all_lessons(root) if told[lesson.number].get("part") == int(part)]
        lines.append(f"- **Part {part}, {title}** ({sum(lesson.minutes for lesson in mine)} minutes)")
        for lesson in mine:
            headings: dict = {}
            for claim, heading, *_ in lesson.shown:
                headings.setdefault(heading, set()).add(int(claim[1:]))
            numbers = {heading: ", ".join(f"W{each}" for each in sorted(found)) for heading, found in headings.items()}
            names = " · ".join(f"{heading} ({found})" for heading, found in numbers.items())
            lines.append(f"  - [{int(lesson.number)}](notebooks/{lesson.file}): {names}")
    return "\n".join(lines)


def store_seconds(number: str, seconds: float, root: Path = ROOT) -> None:
    """Note in minutes.toml how long the replay of a lesson takes on this machine."""
    path = root / "notebooks/minutes.toml"
    known = read("minutes", root).get("seconds", {}) | {number: seconds}
    lines = [f"{each} = {known[each]:.1f}" for each in sorted(known)]
    head = [path.read_text(encoding="utf-8").splitlines()[0], f"cores = {os.cpu_count()}", "", "[seconds]"]
    path.write_text("\n".join([*head, *lines, ""]), encoding="utf-8")
