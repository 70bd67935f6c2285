"""The claims and their cells, and what is made of them: ledger, poster, README.md's tables.

Each rule returns its complaints about a copy of the project; the copies below are broken, one rule at a time.
"""

import json
import os
import re
import shutil

import pytest
from kit import ROOT, images, ledger
from kit.console import run
from test_lessons import CLAIMS, LESSONS

VERDICT = r"holds|holds with a nuance|outdated since v?\d[\d.]*|wrong"


# ── The rules ─────────────────────────────────────────────────────────────────────────────────────────────────────


def every_claim_is_judged(root):
    """A claim, one of four verdicts, and one sentence of nuance."""
    claims, parts = ledger.read("claims", root), ledger.read("lessons", root)["parts"]
    complaints = [] if set(claims) == CLAIMS else [f"the claims are {sorted(claims)}"]
    for name, claim in claims.items():
        if set(claim) != {"part", "claim", "verdict", "nuance"} or str(claim["part"]) not in parts:
            complaints.append(f"{name} has {sorted(claim)}, and part {claim.get('part')}")
        elif not re.fullmatch(VERDICT, claim["verdict"]):
            complaints.append(f"{name}: {claim['verdict']!r} is no verdict")
        elif any(not re.fullmatch(r"[^.]([^.]|\.(?! ))+\.", claim[of]) for of in ("claim", "nuance")):
            complaints.append(f"{name}: claim and nuance are a sentence each")
    return complaints


def every_claim_is_shown(root):
    """By a cell; but for those whose lessons are still to come."""
    there = ledger.all_lessons(root)
    shown = {claim for lesson in there for claim, *_ in lesson.shown}
    expected = CLAIMS if len(there) == LESSONS else set().union(*(lesson.named for lesson in there))
    return [f"no cell shows {claim}" for claim in sorted(expected - shown)]


def every_tag_is_a_claim(root):
    """No cell shows what nobody has claimed."""
    tags = [(lesson.file, claim) for lesson in ledger.all_lessons(root) for claim, *_ in lesson.shown]
    return [f"{file}: there is no claim {claim}" for file, claim in tags if claim not in ledger.read("claims", root)]


def every_witness_speaks(root):
    """What shows a claim is an output, and one that is compared."""
    complaints = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            tags = cell["metadata"].get("tags", [])
            witness = any(re.fullmatch(ledger.CLAIM, tag) for tag in tags)
            if witness and (not cell.get("outputs") or "nbval-ignore-output" in tags):
                complaints.append(f"{path.name}, {cell['id']}: nothing that is compared shows {tags}")
    return complaints


def every_lesson_shows_what_it_names(root):
    """The first cell makes a promise."""
    complaints = []
    for lesson in ledger.all_lessons(root):
        missing = lesson.named - {claim for claim, *_ in lesson.shown}
        complaints += [f"{lesson.file} names {claim}, and no cell of it has that tag" for claim in sorted(missing)]
    return complaints


def every_lesson_is_told(root):
    """In README.md's table."""
    told = ledger.read("lessons", root)
    return [f"lessons.toml lacks {each.number}" for each in ledger.all_lessons(root) if each.number not in told]


def all_is_current(root):
    """What is committed is what would be made now."""
    stale = [path for path, text in ledger.made(root).items() if path.read_text() != text]
    return [f"{path.relative_to(root)} is not current: run scripts/refresh --tables" for path in stale]


RULES = [
    every_claim_is_judged,
    every_claim_is_shown,
    every_tag_is_a_claim,
    every_witness_speaks,
    every_lesson_shows_what_it_names,
    every_lesson_is_told,
    all_is_current,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_ledger_keeps_the_rules(rule):
    complaints = rule(ROOT)
    assert not complaints, "\n".join(complaints)


# ── Each rule can complain ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def copy(tmp_path):
    """A copy of what the tables are made of, and of what is made."""
    (tmp_path / "slides").mkdir()
    (tmp_path / "notebooks").mkdir()
    names = ["README.md", "slides/survival.svg", "notebooks/ledger.md"]
    kept = [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "notebooks").glob("*.toml")]
    for path in [*kept, *(ROOT / name for name in names)]:
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    return tmp_path


def edit(name, old, new):
    """Return a function that changes a text in a file, wherever it is."""

    def change(root):
        path = root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def cells(name, act):
    """Return a function that acts on each tagged cell of a notebook."""

    def change(root):
        path = root / "notebooks" / name
        notebook = json.loads(path.read_text())
        for cell in notebook["cells"]:
            if any(re.fullmatch(ledger.CLAIM, tag) for tag in cell["metadata"].get("tags", [])):
                act(cell)
        path.write_text(json.dumps(notebook))

    return change


FIRST = "01-stateless-apps-scale.ipynb"
CLAIMS_FILE, LESSONS_FILE = "notebooks/claims.toml", "notebooks/lessons.toml"
NO_TAGS = cells(FIRST, lambda cell: cell["metadata"].clear())

BROKEN = [
    (every_claim_is_judged, edit(CLAIMS_FILE, "[W22]", "[W23]"), "the claims are"),
    (every_claim_is_judged, edit(CLAIMS_FILE, '"wrong"', '"partly"'), "W10: 'partly' is no verdict"),
    (every_claim_is_judged, edit(CLAIMS_FILE, '"wrong"', '"outdated since"'), "W10: 'outdated since' is no verdict"),
    (every_claim_is_judged, edit(CLAIMS_FILE, "in turn.", "in turn. Really."), "W3: claim and nuance are a sentence"),
    (every_claim_is_judged, edit(CLAIMS_FILE, "each connection.", ""), "W3: claim and nuance are a sentence"),
    (every_claim_is_judged, edit(CLAIMS_FILE, "part = 2", "part = 4"), "W15 has"),
    (every_claim_is_shown, NO_TAGS, "no cell shows W3"),
    (every_tag_is_a_claim, edit(f"notebooks/{FIRST}", '"W3"', '"W33"'), f"{FIRST}: there is no claim W33"),
    (every_witness_speaks, cells(FIRST, lambda cell: cell.update(outputs=[])), "01-21: nothing that is compared"),
    (
        every_witness_speaks,
        cells(FIRST, lambda cell: cell["metadata"]["tags"].append("nbval-ignore-output")),
        "01-40: nothing that is compared",
    ),
    (every_witness_speaks, cells(FIRST, lambda cell: cell.pop("outputs")), "01-21: nothing that is compared"),
    (every_lesson_shows_what_it_names, NO_TAGS, f"{FIRST} names W2, and no cell"),
    (
        every_lesson_shows_what_it_names,
        edit(f"notebooks/{FIRST}", "W1, W2 and W3", "W1, W2, W3 and W19"),
        f"{FIRST} names W19, and no cell",
    ),
    (every_lesson_is_told, edit(LESSONS_FILE, "[02]", "[92]"), "lacks 02"),
    (all_is_current, edit(CLAIMS_FILE, '"wrong"', '"holds"'), "notebooks/ledger.md is not current"),
    (all_is_current, edit(f"notebooks/{FIRST}", "25 minutes", "26 minutes"), "README.md is not current"),
    (all_is_current, edit("notebooks/survival.toml", '"if rescued"', '"no"'), "slides/survival.svg is not current"),
    (all_is_current, edit("README.md", "| part 2 |", "| part 1 |"), "README.md is not current"),
]


@pytest.mark.parametrize(
    ("rule", "break_it", "said"), BROKEN, ids=[f"{rule.__name__}-{n}" for n, (rule, *_) in enumerate(BROKEN)]
)
def test_a_broken_rule_is_told(copy, rule, break_it, said):
    assert rule(copy) == []
    break_it(copy)
    complaints = rule(copy)
    assert any(said in complaint for complaint in complaints), complaints


def test_every_rule_can_fail():
    assert {rule for rule, *_ in BROKEN} == set(RULES)


def test_with_the_last_lesson_every_claim_must_be_shown(copy, monkeypatch):
    monkeypatch.setitem(globals(), "LESSONS", len(ledger.all_lessons(copy)))
    shown = {claim for lesson in ledger.all_lessons(copy) for claim, *_ in lesson.shown}
    assert every_claim_is_shown(copy) == [f"no cell shows {claim}" for claim in sorted(CLAIMS - shown)]


# ── What is made ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_claim_leads_to_its_lesson_heading_and_cells(copy):
    text = ledger.claim_ledger(copy)
    assert f"Kubernetes {images.NODE['version']}." in text
    (line,) = re.findall(r"^\| W10 \|.*$", text, re.MULTILINE)
    assert "| **wrong** |" in line
    assert "](04-get-all-does-not.ipynb#Each-kind-says-whether-it-is-in-all): 7, 11 |" in line


def test_a_claim_that_no_cell_shows_has_no_verdict(copy):
    NO_TAGS(copy)
    (line,) = re.findall(r"^\| W3 \|.*$", ledger.claim_ledger(copy), re.MULTILINE)
    assert line.endswith("| not shown yet |  |  |")


def test_what_is_written_is_current_and_written_once(copy):
    for name in ("notebooks/ledger.md", "slides/survival.svg"):
        (copy / name).unlink()
    edit("README.md", "| part 2 |", "| part 1 |")(copy)
    edit("README.md", "Licence:", "The licence:")(copy)
    assert ledger.write(copy) == ["notebooks/ledger.md", "slides/survival.svg", "README.md"]
    assert all_is_current(copy) == [] and ledger.write(copy) == []
    assert "The licence:" in (copy / "README.md").read_text(), "what is beside the tables is a person's"


def test_replays_are_told_when_they_have_been_measured(copy):
    (copy / "notebooks/minutes.toml").write_text("# Medians\n")
    assert "replay" not in ledger.lesson_table(copy)
    for number, seconds in (("02", 41.26), ("01", 30.04), ("02", 44.6)):
        ledger.store_seconds(number, seconds, copy)
    text = (copy / "notebooks/minutes.toml").read_text()
    assert re.fullmatch(r"# Medians\ncores = \d+\n\n\[seconds\]\n01 = 30.0\n02 = 44.6\n", text)
    head, _, *rows = ledger.lesson_table(copy).splitlines()
    assert re.search(r"\| minutes \| replay, \d+ cores \|$", head)
    assert [row.split("|")[-2].strip() for row in rows[:4]] == ["", "30 s", "45 s", ""]


def test_the_path_has_every_lesson_of_a_part_with_its_headings(copy):
    lines = ledger.follow_along(copy).splitlines()
    assert [line for line in lines if line.startswith("- ")][0] == "- **Part 1, introducing state** (115 minutes)"
    assert lines[4].startswith("  - [4](notebooks/04-get-all-does-not.ipynb): A Deployment, a StatefulSet, and seven")
    assert len(lines) == 3 + len(ledger.all_lessons(copy)) - 1  # lesson 0 belongs to none


def test_the_command_needs_no_cluster():
    assert all_is_current(ROOT) == []  # or the command would mend what the test is to find
    nowhere = os.environ | {"DOCKER_HOST": "unix:///nowhere", "KUBECONFIG": "/dev/null"}
    assert "✓ tables: as they were" in run([ROOT / "scripts/refresh", "--tables"], env=nowhere).stdout


@pytest.mark.parametrize("arguments", ([], ["--tables", "01"]))
def test_the_command_wants_lessons_or_tables(arguments):
    done = run([ROOT / "scripts/refresh", *arguments], check=False)
    assert done.returncode == 2 and "give the numbers of lessons, or --tables" in done.stderr
