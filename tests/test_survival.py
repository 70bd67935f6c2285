"""The survival matrix: what is in survival.toml, how it is drawn, and that a wrong verdict is noticed."""

import re
from html.parser import HTMLParser
from itertools import product
from xml.etree import ElementTree

import nbformat
import pytest
from kit import lessons, poster
from survival import Matrix

import lab

DATA = """
rows = ["memory", "a <claim>"]
columns = ["restart", "delete", "node stop"]
cells.memory.restart = {verdict = "no", lesson = 3, evidence = "A ladder"}
cells."a <claim>".restart = {verdict = "yes", lesson = 3, evidence = "A ladder"}
cells."a <claim>".delete = {verdict = "if told so", lesson = 8, evidence = "Delete & Retain"}
"""
SEEN = {("memory", "restart"): False, ("a <claim>", "restart"): True}


class Table(HTMLParser):
    """The rows of an HTML table: for each cell its attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append((dict(attributes), []))
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1][1].append(data)


# ── Drawn ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_lesson_shows_what_is_filled_by_then():
    assert [len(Matrix(lesson, DATA).cells) for lesson in (0, 2, 3, 7, 8, 15)] == [0, 0, 2, 2, 3, 3]


def test_as_text():
    assert repr(Matrix(3, DATA)).splitlines() == [
        "outlives …  restart  delete  node stop",
        "memory      ✗ no     ?       ?",
        "a <claim>   ✓ yes    ?       ?",
    ]
    assert repr(Matrix(8, DATA)).splitlines()[-1] == "a <claim>   ✓ yes    ◐ if told so  ?"


def test_as_a_table_it_says_the_same():
    for number in (0, 3, 8):
        matrix = Matrix(number, DATA)
        table = Table(matrix._repr_html_())
        assert not table.open
        text = [re.split(r"  +", line) for line in repr(matrix).splitlines()]
        assert [[words[0] for _, words in row] for row in table.rows] == text


def test_what_is_filled_is_marked_by_more_than_colour():
    head, *rows = Table(Matrix(8, DATA)._repr_html_()).rows
    assert {attributes["scope"] for attributes, _ in head} == {"col"}
    assert {row[0][0]["scope"] for row in rows} == {"row"}
    cells = [cell for row in rows for cell in row[1:]]
    filled = [(attributes, words) for attributes, words in cells if "background" in attributes["style"]]
    assert [words for _, words in filled] == [
        ["✗ no", "lesson 3"],
        ["✓ yes", "lesson 3"],
        ["◐ if told so", "lesson 8"],
    ]
    assert len({re.search("background: (#.*)", attributes["style"])[1] for attributes, _ in filled}) == 3
    assert not re.search(r"(?<!-)\bcolor:", str(cells)), "the page's own, dark or light"
    assert 'title="Delete &amp; Retain"' in Matrix(8, DATA)._repr_html_()


# ── As a poster ───────────────────────────────────────────────────────────────────────────────────────────────────


def texts(picture):
    """What is written in an SVG: (words, size)."""
    root = ElementTree.fromstring(picture)
    return [("".join(each.itertext()), float(each.get("font-size"))) for each in root.iter() if each.tag[-4:] == "text"]


def test_the_poster_has_every_name_verdict_and_lesson():
    words = [text for text, _ in texts(poster.draw(DATA, "v1.99"))]
    assert {"memory", "a", "<claim>", "restart", "delete", "node", "stop", "outlives …"} <= set(words)
    assert "each cell tried on Kubernetes v1.99" in words
    place = words.index("memory")
    in_rows = ["memory", "no", "3", "?", "?", "a", "<claim>", "yes", "3", "if", "told so", "8", "?"]
    assert words[place : place + len(in_rows)] == in_rows


def test_the_poster_says_in_a_description_what_it_shows():
    described = ElementTree.fromstring(poster.draw(DATA, "v1.99")).find("{*}desc").text
    assert described == "memory × restart: no; a <claim> × restart: yes; a <claim> × delete: if told so"


def test_the_poster_can_be_read_from_two_metres_and_in_black():
    assert min(size for _, size in texts(poster.draw(DATA, "v1.99"))) >= 6  # millimetres: letters 4 mm high
    shapes = [shape for _, _, shape in poster.MARKS.values()]
    assert len(set(shapes)) == 3 and "#" not in "".join(shapes)
    width, height = re.search(r'width="(\d+)mm" height="(\d+)mm"', poster.draw(DATA, "v1.99")).groups()
    assert (int(width), int(height)) == (420, 297), "A3, across"


# ── Compared with the cluster ─────────────────────────────────────────────────────────────────────────────────────


def test_it_agrees_with_what_was_seen():
    assert Matrix(3, DATA).contradictions(SEEN) == []
    assert Matrix(3, DATA).contradictions(SEEN | {("memory", "next request"): True, ("a variable", "restart"): 1}) == []
    assert Matrix(8, DATA).contradictions({("a <claim>", "delete"): "if told so"}) == []


@pytest.mark.parametrize(
    ("number", "seen", "said"),
    [
        (3, SEEN | {("memory", "restart"): True}, ["memory × restart: survival.toml says no, the cluster yes."]),
        (3, SEEN | {("memory", "delete"): False}, ["memory × delete: survival.toml says nothing, the cluster no."]),
        (3, {("memory", "restart"): False}, ["a <claim> × restart: survival.toml says yes, the cluster nothing."]),
        (8, SEEN, ["memory × restart: survival.toml says nothing", "a <claim> × restart: ", "a <claim> × delete: "]),
    ],
)
def test_a_contradiction_is_named(number, seen, said):
    found = Matrix(number, DATA).contradictions(seen)
    assert len(found) == len(said)
    assert all(line.startswith(beginning) for line, beginning in zip(found, said, strict=True)), found


def test_a_lesson_that_saw_something_else_fails():
    seen = {place: cell["verdict"] for place, cell in Matrix(3).cells.items() if cell["lesson"] == 3}
    assert repr(lab.survival(3, seen)) == repr(lab.survival(3))
    for place, verdict in seen.items():
        other = {"yes": "no"}.get(verdict, "yes")
        with pytest.raises(
            lab.Problem, match=rf"{re.escape(' × '.join(place))}: .* says {verdict}, the cluster {other}"
        ):
            lab.survival(3, seen | {place: other})


# ── The data ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_cell_names_the_lesson_that_shows_it():
    matrix = Matrix(15)
    assert set(matrix.cells) <= set(product(matrix.rows, matrix.columns))
    assert all(set(cell) == {"verdict", "lesson", "evidence"} for cell in matrix.cells.values())
    for number in sorted({cell["lesson"] for cell in matrix.cells.values()}):
        cells = nbformat.read(lessons.notebooks()[f"{number:02}"], as_version=4).cells
        evidence = {cell["evidence"] for cell in matrix.cells.values() if cell["lesson"] == number}
        assert evidence <= {cell.source.split("\n")[0].removeprefix("## ") for cell in cells}
        calls = [cell for cell in cells if re.search(rf"^lab\.survival\({number}, \w+\)$", cell.source, re.MULTILINE)]
        assert calls, f"Lesson {number} fills cells: it must hand lab.survival what it saw."
