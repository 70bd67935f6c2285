"""The slides as a room sees them: each deck is built, opened in a headless Chromium, and looked at.

Each rule returns its complaints about a deck; a test with a broken deck shows of each that it can complain.
"""

import os
import re
import shutil
import unicodedata
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path

import nbformat
import pytest
from conftest import in_a_sentence
from kit import ROOT, lessons, slides
from kit.console import Failure, run
from playwright.sync_api import Browser, sync_playwright
from pypdf import PdfReader
from survival import Matrix

# The numbers of the lessons that a deck presents.
PARTS = {"part-1": range(0, 5), "part-2": range(5, 9), "part-3": range(9, 16)}

WORDS = 35  # of running text on a slide: who reads does not listen
SMALLEST = 24  # pixels of text, on a slide 720 high

# What the page knows of the slide that it shows. Positions are relative to the slide; 1 pixel is rounding.
LOOK = """number => {
    const section = document.querySelectorAll("svg[data-marpit-svg]")[number]
        .querySelector('section:not([data-marpit-advanced-background$="d"], [data-marpit-advanced-background$="o"])');
    const frame = section.getBoundingClientRect(), style = getComputedStyle(section);
    const edge = side => parseFloat(style["padding" + side]) - 1;
    const inside = [...section.querySelectorAll("*")].filter(element => !element.closest("header, footer"));
    const outside = element => {
        const box = element.getBoundingClientRect();
        return box.width && (box.left < frame.left + edge("Left") || box.right > frame.right - edge("Right")
            || box.top < frame.top + edge("Top") || box.bottom > frame.bottom - edge("Bottom")
            || element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display != "inline");
    };
    const texts = [];
    const walker = document.createTreeWalker(section, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) if (walker.currentNode.data.trim()) texts.push(walker.currentNode);
    const prose = texts.filter(text => !text.parentElement.closest("header, footer, pre"));
    return {
        lesson: section.querySelector("header")?.textContent ?? "",
        title: section.querySelector("h1, h2")?.textContent ?? "",
        question: section.classList.contains("question"),
        blocks: [...section.querySelectorAll("pre code")].map(code => [code.className, code.textContent]),
        words: prose.map(text => text.data).join(" ").split(/\\s+/).filter(word => /\\w/.test(word)).length,
        smallest: Math.min(...texts.map(text => parseFloat(getComputedStyle(text.parentElement).fontSize))),
        overflowing: inside.filter(outside).map(element => element.tagName.toLowerCase()),
        pictures: [...section.querySelectorAll("img")].map(
            image => ({alt: image.alt, broken: !image.complete || image.naturalWidth == 0, source: image.src})),
        note: document.querySelector(`.bespoke-marp-note[data-index="${number}"]`)?.textContent.trim() ?? "",
    };
}"""


@dataclass(repr=False)  # pictures are long
class Deck:
    """What Chromium saw of a built deck."""

    source: Path
    html: Path
    slides: list[dict]
    asked_for: list[str]

    @property
    def sections(self) -> dict[str, list[dict]]:
        """The slides by the lesson they present."""
        found: dict = {}
        for slide in self.slides:
            if slide["lesson"]:
                found.setdefault(slide["lesson"], []).append(slide)
        return found


def see(browser: Browser, source: Path, folder: Path) -> Deck:
    """Build a deck and look at each slide, with every road out of the page closed."""
    html = slides.make_html(source, folder)
    address = html.as_uri()
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    asked_for = []

    def decide(route):
        if route.request.url.split("#")[0] == address:
            return route.continue_()
        asked_for.append(route.request.url)
        return route.abort()

    page.route("**/*", decide)
    page.goto(address)
    seen = []
    for number in range(page.locator("svg[data-marpit-svg]").count()):
        page.goto(f"{address}#{number + 1}")
        seen.append(page.evaluate(LOOK, number))
    page.close()
    return Deck(source, html, seen, asked_for)


@pytest.fixture(scope="module")  # its event loop must have ended before the notebooks start theirs
def browser():
    """The system's Chromium, headless; and Marp beside it."""
    with in_a_sentence():
        slides.ensure_marp()
        slides.ensure_chromium()
    with sync_playwright() as playwright:
        quiet = ["--no-sandbox", "--disable-background-networking"]
        chromium = playwright.chromium.launch(executable_path=slides.chromium(), args=quiet)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def deck(request, browser, tmp_path_factory) -> Deck:
    """A deck of slides/, built and seen."""
    with in_a_sentence():
        return see(browser, slides.SLIDES / f"{request.param}.md", tmp_path_factory.mktemp(request.param))


# ── The rules ─────────────────────────────────────────────────────────────────────────────────────────────────────


def stems(numbers: range) -> list[str]:
    """The lessons with these numbers."""
    return [path.stem for number, path in sorted(lessons.notebooks().items()) if int(number) in numbers]


def of_a_lesson(stem: str) -> str:
    """Everything that a lesson runs or shows: its code, its outputs and its manifests, with blanks as one blank."""
    manifests = [file.read_text() for file in (ROOT / "manifests" / stem).rglob("*.yaml")]
    cells = []
    if path := lessons.notebooks().get(stem[:2]):
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    shown = [output for cell in cells for output in cell.outputs]
    outputs = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in shown]
    return " ".join(" ".join([*(cell.source for cell in cells), *outputs, *manifests]).split())


def every_slide_fits(deck, _):
    """What is cut off, or runs into the margin, is lost to the room."""
    return [f"{slide['title']}: {', '.join(slide['overflowing'])}" for slide in deck.slides if slide["overflowing"]]


def every_slide_is_readable(deck, _):
    """Large letters, few words."""
    small = [f"{slide['title']}: {slide['smallest']} px" for slide in deck.slides if slide["smallest"] < SMALLEST]
    return small + [f"{slide['title']}: {slide['words']} words" for slide in deck.slides if slide["words"] > WORDS]


def every_picture_is_whole(deck, _):
    """Chromium could draw it."""
    return [slide["title"] for slide in deck.slides for picture in slide["pictures"] if picture["broken"]]


def every_picture_has_words(deck, _):
    """Who can't see it hears its alt text."""
    return [slide["title"] for slide in deck.slides for picture in slide["pictures"] if not picture["alt"].strip()]


def nothing_is_fetched(deck, _):
    """The HTML is one file: a room may have no network."""
    return sorted(set(deck.asked_for))


def every_slide_has_its_time(deck, _):
    """The notes of each slide begin with its minutes; those of the first say what they all take."""
    complaints, minutes = [], 0
    for slide in deck.slides:
        if found := re.match(r"(\d+) min\b", slide["note"]):
            minutes += int(found[1])
        else:
            complaints.append(f"{slide['title']}: the notes begin {slide['note'][:20]!r}, not with minutes")
    if f"takes {minutes} min" not in deck.slides[0]["note"]:
        complaints.append(f"the minutes are {minutes}, and the first slide's notes say something else")
    return complaints


def every_lesson_has_its_section(deck, numbers):
    """The lessons of the part, in order, each with its own picture. Slides before and after them belong to none."""
    order = [lesson for lesson, _ in groupby(slide["lesson"] for slide in deck.slides)]
    order = order[order[0] == "" : len(order) - (order[-1] == "")]
    complaints = [] if order == stems(numbers) else [f"the sections are {order}, the lessons {stems(numbers)}"]
    for stem, section in deck.sections.items():
        drawing = ROOT / f"notebooks/pictures/{stem}.svg"
        wanted = slides.as_data(drawing) if drawing.exists() else None
        if wanted not in [picture["source"] for slide in section for picture in slide["pictures"]]:
            complaints.append(f"{stem}: its section does not show notebooks/pictures/{stem}.svg")
    return complaints


def every_question_is_answered_by_the_cluster(deck, _):
    """After a question comes what the lesson printed. No command on a slide, and no output, that the lesson lacks."""
    complaints = []
    for slide, after in pairwise([*deck.slides, deck.slides[0]]):
        if slide["question"] and not (after["blocks"] and after["lesson"] == slide["lesson"]):
            complaints.append(f"{slide['title']}: the next slide shows no output")
    for stem, section in deck.sections.items():
        there = of_a_lesson(stem)
        for kind, text in (block for slide in section for block in slide["blocks"]):
            # Of commands, each line; of an output, all at once, but where "…" says that lines are left out.
            parts = text.splitlines() if kind == "language-bash" else re.split("^…$", text, flags=re.MULTILINE)
            complaints += [f"{stem} does not have: {part}" for part in parts if " ".join(part.split()) not in there]
    return complaints


def every_slide_is_a_page(deck, _):
    """The PDF has them all, and no more."""
    pages = len(PdfReader(slides.make_pdf(deck.source, deck.html.parent)).pages)
    return [] if pages == len(deck.slides) else [f"{pages} pages, {len(deck.slides)} slides"]


RULES = [
    every_slide_fits,
    every_slide_is_readable,
    every_picture_is_whole,
    every_picture_has_words,
    nothing_is_fetched,
    every_slide_has_its_time,
    every_lesson_has_its_section,
    every_question_is_answered_by_the_cluster,
    every_slide_is_a_page,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("deck", PARTS, indirect=True)
def test_the_deck_keeps_the_rules(deck, rule, request):
    complaints = rule(deck, PARTS[request.node.callspec.params["deck"]])
    assert not complaints, "\n".join(complaints)


def test_every_deck_presents_a_part():
    assert [path.stem for path in slides.decks()] == list(PARTS)


# ── Each rule can complain ────────────────────────────────────────────────────────────────────────────────────────

LONG = "\n".join(["- and another"] * 12)
BAD = f"""\
---
theme: workshop
---

# A bad deck

<style>h1 {{ background: url(http://127.0.0.1:9/) }}</style>
<!-- 1 min. It takes 9 min. -->

---
<!-- header: 00-start-here -->

## Too long

{LONG}

<!-- 1 min. -->

---

## Too wide

{"x" * 100}

<!-- 1 min. -->

---

## Too small

<style scoped>p {{ font-size: 23px }}</style>

Who can read this?

<!-- 1 min. -->

---

## Too much

{"word " * 40}

<!-- 1 min. -->

---

## Torn

![It would be a picture](torn.svg)

<!-- 1 min. -->

---

## Wordless

![](00-start-here.svg)

<!-- 1 min. -->

---

## Outside

![bg A lesson and a cluster](00-start-here.svg)

<!-- 1 min. -->

---

## In no time

---

## Made up

```text
{{"cats": 2}}
```

<!-- 1 min. -->

---
<!-- _class: question -->

## Unanswered

<!-- 1 min. -->

---
<!-- header: 99-nowhere -->

## Nowhere

<!-- 1 min. -->
"""

COMPLAINTS = {
    every_slide_fits: ["Too long: h2, ul", "Too wide: p"],
    every_slide_is_readable: ["Too small: 23 px", "Too much: 42 words"],
    every_picture_is_whole: ["Torn"],
    every_picture_has_words: ["Wordless"],
    nothing_is_fetched: ["file:///", "http://127.0.0.1:9/"],
    every_slide_has_its_time: ["In no time: the notes begin ''", "the minutes are 11"],
    every_lesson_has_its_section: [
        "the sections are ['00-start-here', '99-nowhere']",
        "99-nowhere: its section does not",
    ],
    every_question_is_answered_by_the_cluster: ["Unanswered: ", '00-start-here does not have: {"cats": 2}'],
    every_slide_is_a_page: ["12 pages, 2 slides"],
}


def deck_of(text: str, folder: Path) -> Path:
    """A deck in a folder with a picture of a lesson, and one that is none."""
    shutil.copy(ROOT / "notebooks/pictures/00-start-here.svg", folder)
    (folder / "torn.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><rect")
    source = folder / "part-0.md"
    source.write_text(text)
    return source


@pytest.fixture(scope="module")
def bad(browser, tmp_path_factory) -> Deck:
    """A deck that breaks every rule, each on a slide that is named after it."""
    folder = tmp_path_factory.mktemp("bad")
    return see(browser, deck_of(BAD, folder), folder)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_broken_rule_is_told(rule, bad):
    if rule is every_slide_is_a_page:
        bad = replace(bad, slides=bad.slides[:2])
    complaints = rule(bad, range(1))
    assert [said[: len(known)] for said, known in zip(complaints, COMPLAINTS[rule], strict=True)] == COMPLAINTS[rule]


# ── The builder ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_picture_is_named_and_nothing_is_left(tmp_path):
    with pytest.raises(Failure, match=r"part-0\.md shows lost\.svg, and no such file is there\."):
        slides.build(deck_of(BAD.replace("torn.svg", "lost.svg"), tmp_path), tmp_path / "built")
    assert not (tmp_path / "built").exists()


def test_a_node_that_is_too_old_or_without_npm_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "NODE", tmp_path / "cache/bin/node")
    monkeypatch.setenv("PATH", str(tmp_path))
    for program, prints in {"node": "v18.20.4", "npm": "10.9.2"}.items():
        assert slides.node() is None
        (tmp_path / program).write_text(f"#!/bin/sh\necho {prints}\n")
        (tmp_path / program).chmod(0o755)
    assert slides.node() == tmp_path / "node"
    (tmp_path / "node").write_text("#!/bin/sh\necho v16.20.2\n")
    assert slides.node() is None


def test_without_chromium_a_person_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get either
    monkeypatch.setattr(slides, "CHROME_ON_MAC", tmp_path / "none")
    with pytest.raises(Failure, match="There is no Chromium on PATH: chromium must be installed") as failure:
        slides.ensure_chromium()
    assert failure.value.remedy == "Install Chromium or Google Chrome, then try again."


def test_the_lock_names_no_registry_and_no_place_on_a_machine():
    lock = (slides.SLIDES / "package-lock.json").read_text()
    assert '"resolved"' not in lock and "file:" not in lock
    assert lock.count('"integrity": "sha512-') == lock.count('"node_modules/')


@pytest.fixture(scope="module")
def temporary(tmp_path_factory) -> Path:
    """Where the command's programs put what they need for a while."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def built(temporary) -> Path:
    """Where the command has put what it builds."""
    for name in ("kubernetes-and-state.pdf", "survival.pdf"):
        (slides.BUILT / name).unlink(missing_ok=True)
    done = run([ROOT / "scripts/slides"], env=os.environ | {"TMPDIR": str(temporary)})
    assert "The slides are in .workshop/slides/" in done.stdout
    return slides.BUILT


def test_the_command_builds_every_deck_and_the_poster(built):
    for source in slides.decks():
        assert (built / f"{source.stem}.html").exists() and (built / f"{source.stem}.pdf").exists()
    assert (built / "survival.pdf").exists()


def test_the_command_leaves_nothing_else(built, temporary):
    assert not list(temporary.iterdir())


# ── All parts in one ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def whole(built) -> PdfReader:
    """The PDF of all parts."""
    return PdfReader(built / "kubernetes-and-state.pdf")


def written(page) -> tuple[list[str], list[str]]:
    """What is written on a page and in its picture, line by line; and above it: its lesson, if any, and its number."""
    *lines, top = unicodedata.normalize("NFKC", page.extract_text()).splitlines()  # a PDF has ligatures
    return lines, top.split()


def test_one_pdf_has_the_slides_of_all_parts(whole, built):
    pages = [page for part in PARTS for page in PdfReader(built / f"{part}.pdf").pages]
    assert [written(page)[0] for page in whole.pages] == [written(page)[0] for page in pages]


def test_its_page_numbers_run_on(whole):
    assert [written(page)[1][-1] for page in whole.pages] == [str(number + 1) for number in range(len(whole.pages))]


def test_its_outline_names_the_parts_and_their_lessons(whole):
    tops = [written(page)[1] for page in whole.pages]
    assert len(whole.outline) == 2 * len(PARTS)  # after each part a list of its lessons
    for part, entries, (deck, numbers) in zip(whole.outline[::2], whole.outline[1::2], PARTS.items(), strict=True):
        assert part.title.startswith(f"Part {deck[-1]}: ")
        assert part.title in written(whole.pages[whole.get_destination_page_number(part)])[0]
        for entry, stem in zip(entries, stems(numbers), strict=True):
            claim = nbformat.read(lessons.notebooks()[stem[:2]], as_version=4).cells[0].source.splitlines()[0]
            assert entry.title == claim.removeprefix("# ").replace("`", "")
            first = [top[0] for top in tops].index(stem)
            assert whole.get_destination_page_number(entry) == first


# ── The poster ────────────────────────────────────────────────────────────────────────────────────────────────────

# What is written where, and the frames of the cells: in millimetres, each as [words, left, top, right, bottom].
BOXES = """() => {
    const boxes = name => [...document.querySelectorAll(name)].map(each => {
        const box = each.getBBox();
        return [each.textContent, box.x, box.y, box.x + box.width, box.y + box.height];
    });
    return [boxes("text"), boxes("rect")];
}"""


def crowded(browser: Browser, picture: str) -> list[str]:
    """Which texts of a poster lie across a frame, or on one another, or leave the sheet."""
    page = browser.new_page()
    page.set_content(picture)
    texts, (sheet, *frames) = page.evaluate(BOXES)
    page.close()
    complaints = []
    for place, text in enumerate(texts):
        if not inside(text, sheet):
            complaints.append(f"{text[0]} leaves the sheet")
        complaints += [f"{text[0]} leaves its cell" for box in frames if touch(text, box) and not inside(text, box)]
        complaints += [f"{text[0]} lies on {other[0]}" for other in texts[:place] if touch(text, other)]
    return complaints


def inside(text, box):
    """Whether a text is within a box, from left to right; the box of a letter is higher than what one sees of it."""
    return box[1] <= text[1] and text[3] <= box[3]


def touch(one, other):
    """Whether two boxes have more in common than the air above and below letters."""
    across = min(one[3], other[3]) - max(one[1], other[1])
    down = min(one[4], other[4]) - max(one[2], other[2])
    return across > 0 and down > 0.3 * min(one[4] - one[2], other[4] - other[2])


def test_nothing_on_the_poster_is_crowded(browser):
    assert crowded(browser, slides.POSTER.read_text()) == []


def test_a_crowded_poster_is_noticed(browser):
    long = slides.POSTER.read_text().replace(">by default<", ">by default, and not otherwise<", 1)
    assert "by default, and not otherwise leaves its cell" in crowded(browser, long)
    wide = slides.POSTER.read_text().replace(">What outlives what<", f">{'What outlives what ' * 5}<")
    assert any("leaves the sheet" in each or "lies on" in each for each in crowded(browser, wide))


def test_the_poster_is_one_page_of_a3_with_every_name(browser, tmp_path):
    (page,) = PdfReader(slides.make_poster(tmp_path)).pages
    assert [round(float(side) / 72 * 25.4) for side in page.mediabox[2:]] == [420, 297]
    assert [path.name for path in tmp_path.iterdir()] == ["survival.pdf"]
    words, matrix = " ".join(page.extract_text().split()), Matrix(15)
    assert [name for name in [*matrix.rows, *matrix.columns] if name not in words] == []
