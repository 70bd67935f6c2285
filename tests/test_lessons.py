"""What must hold of every lesson as it is stored. Each rule is a function that returns its complaints about a notebook.

Whether the stored outputs are what a cluster says, nbval finds out by running the notebooks.
"""

import base64
import copy
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import nbformat
import pytest
import trustme
from kit import LABEL, OWNER, ROOT, STATE, ledger, lessons
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbval.plugin import comment_markers, get_sanitize_patterns, metadata_tags

CLAIMS = {f"W{number}" for number in range(1, 23)}  # of the webinar that the workshop follows
LESSONS = 16
IGNORE = "nbval-ignore-output"
INTRODUCTION = "00"  # it shows how a lesson works, and may do with fewer experiments and no exercise


@dataclass
class Lesson:
    """A notebook and what it is called."""

    stem: str
    notebook: nbformat.NotebookNode

    @property
    def number(self) -> str:
        """The two digits that the name begins with."""
        return self.stem[:2]

    @property
    def code(self) -> list:
        """The code cells."""
        return [cell for cell in self.notebook.cells if cell.cell_type == "code"]

    @property
    def prose(self) -> list:
        """The Markdown cells."""
        return [cell for cell in self.notebook.cells if cell.cell_type == "markdown"]

    @property
    def sections(self) -> dict:
        """The cells under each heading of the second level, that of the heading first."""
        found, cells = {}, []
        for cell in self.notebook.cells:
            if cell.cell_type == "markdown" and cell.source.startswith("## "):
                cells = found.setdefault(cell.source.splitlines()[0].removeprefix("## "), [])
            cells.append(cell)
        return found

    @property
    def anchors(self) -> set[str]:
        """What the headings are called in a link."""
        found = re.findall(r"^#+ (.+)$", "\n".join(cell.source for cell in self.prose), re.MULTILINE)
        return {ledger.anchor(heading).removeprefix("#") for heading in found}

    @property
    def experiments(self) -> dict:
        """The sections that do not have a name of their own."""
        return {name: cells for name, cells in self.sections.items() if name not in BEFORE + AFTER}


def read(path: Path) -> Lesson:
    """Read a lesson from its notebook."""
    return Lesson(path.stem, nbformat.read(path, as_version=4))


def first_line(cell) -> str:
    """What to call a cell in a complaint."""
    return repr(cell.source.strip().split("\n")[0][:60])


def printed(cell) -> str:
    """Everything that a code cell shows, as stored."""
    return json.dumps(cell.outputs, ensure_ascii=False) if cell.outputs else ""


# ── The rules ─────────────────────────────────────────────────────────────────────────────────────────────────────

BEFORE = ["You will be able to", "Set up"]
AFTER = ["Exercise", "What you now know", "Clean up"]


def counts(lesson):
    """A cell without its count is run by nbval and never compared."""
    in_order = [cell.execution_count for cell in lesson.code] == list(range(1, len(lesson.code) + 1))
    return [] if in_order else [f"the cells were not run once each, from the top: run scripts/refresh {lesson.number}"]


def headings(lesson):
    """The same order in every lesson, each heading at the beginning of a cell."""
    complaints = []
    for cell in lesson.prose:
        lines = re.sub(r"^```.*?^```", "", cell.source, flags=re.MULTILINE | re.DOTALL).splitlines()
        if any(re.match(r"##? ", line) for line in lines[1:]):
            complaints.append(f"{first_line(cell)}: a heading begins a cell of its own")
    number = int(lesson.number)
    if not lesson.notebook.cells[0].source.startswith(f"# {number}. "):
        complaints.append(f"the first cell begins with the claim: '# {number}. …'")
    if sum(cell.source.startswith("# ") for cell in lesson.prose) > 1:
        complaints.append("only the claim has a heading of the first level")
    optional = ["Exercise"] if lesson.number == INTRODUCTION else []
    found = list(lesson.sections)
    wanted = [name for name in BEFORE + list(lesson.experiments) + AFTER if name in found or name not in optional]
    if found != wanted:
        complaints.append(f"headings are {found}, not {wanted}")
    if not (0 if optional else 2) <= len(lesson.experiments) <= 4:
        complaints.append(f"{len(lesson.experiments)} experiments; two to four fit into a lesson")
    return complaints


def opening(lesson):
    """The first cell says what it takes and what it answers; the objectives are three."""
    complaints = []
    first = lesson.notebook.cells[0].source
    if not re.search(r"\d+ minutes", first):
        complaints.append("the first cell says how many minutes the lesson takes")
    if not claims(lesson) and lesson.number != INTRODUCTION:
        complaints.append("the first cell names the claims of the webinar that the lesson answers: W1 …")
    if unknown := claims(lesson) - CLAIMS:
        complaints.append(f"the webinar makes no claim {', '.join(sorted(unknown))}")
    bullets = re.findall(r"^[-*] ", "".join(cell.source for cell in lesson.sections.get(BEFORE[0], [])), re.MULTILINE)
    if len(bullets) != 3:
        complaints.append(f"{len(bullets)} objectives; a lesson has three")
    return complaints


def beats(lesson):
    """Predict, act, observe, explain; the explanation in few words."""
    complaints = []
    for name, cells in lesson.experiments.items():
        text = "\n".join(cell.source if cell.cell_type == "markdown" else "**Act.**" for cell in cells)
        order = re.findall(r"\*\*(Predict|Act|Observe|Explain)\.\*\*", text)
        if not re.fullmatch(r"((Act )*Predict (Act )+Observe (Act )*Explain )+(Act )*", " ".join([*order, ""])):
            complaints.append(f"{name}: the beats are {' '.join(order)}; predict, act, observe, explain")
        for explanation in re.findall(r"\*\*Explain\.\*\*(.*?)(?=\*\*(?:Predict|Act)\.\*\*|\Z)", text, re.DOTALL):
            if (words := len(explanation.split())) > 80:
                complaints.append(f"{name}: the explanation has {words} words; 80 are enough")
    return complaints


def exercise(lesson):
    """As stored, the check fails on the untouched lesson and passes on the solution."""
    if "Exercise" not in lesson.sections:
        return []
    cells = [printed(cell) for cell in lesson.sections["Exercise"] if cell.cell_type == "code"]
    checks = ["".join(re.findall("[✗✓]", text)) for text in cells if re.search("[✗✓]", text)]
    right = len(checks) > 1 and "✗" in checks[0] and "✗" not in checks[-1]
    return [] if right else [f"the exercise's checks print {checks}; with a ✗ at first, and none at last"]


def prose(lesson):
    """Short breaths."""
    words = median(len(cell.source.split()) for cell in lesson.prose)
    return (
        []
        if words <= 45
        else [f"half of the Markdown cells have {words:g} words or more; 45 are the limit, 30 are good"]
    )


def stems(lesson):
    """One stem names the notebook, its namespace and its manifests."""
    complaints = []
    if not re.fullmatch(r"\d\d(-[a-z0-9]+)+", lesson.stem) or len(lesson.stem) > 63:
        complaints.append(f"{lesson.stem} can't name a namespace: two digits, then lower-case words, 63 characters")
    source = "\n".join(cell.source for cell in lesson.code)
    if re.findall(r"""lab\.start\(["'](.*?)["']\)""", source) != [lesson.stem]:
        complaints.append(f'the lesson starts once, with lab.start("{lesson.stem}")')
    for folder in sorted(set(re.findall(r"manifests/([\w.-]+)", source))):
        if not (ROOT / "manifests" / folder).is_dir():
            complaints.append(f"there is no folder manifests/{folder}")
    return complaints


FORBIDDEN = {
    r"\bsleep\b(?!:)": "waits for a time; wait for a condition",  # `sleep:` is a field of preStop
    r":latest\b": "names no version",
    r"\bkubectl edit\b": "opens an editor; apply a file",
    r"\b(?:kubectl|docker)\b[^|;&\n]* -(?:it|ti)\b": "wants a terminal",
    r"\bkubectl\b[^|;&\n]* (?:-w|--watch)\b": "never ends; use kubectl wait or lab.record",
}


def forbidden(text: str) -> list[str]:
    """What can't be replayed, in the text of a cell or a manifest."""
    found = {reason: re.search(pattern, text) for pattern, reason in FORBIDDEN.items()}
    return [f"{match[0].strip()!r} {reason}" for reason, match in found.items() if match]


def commands(lesson):
    """Plain kubectl in %%bash, plain Python elsewhere; nothing that waits for a clock or for a person."""
    complaints = []
    for cell in lesson.code:
        complaints += [f"{first_line(cell)}: {complaint}" for complaint in forbidden(cell.source)]
        head, _, rest = cell.source.partition("\n")
        bash = re.fullmatch(r"%%bash( --no-raise-error)?", head)
        if not bash and re.search(r"^\s*[!%]|=\s*[!%][\w.]", cell.source, re.MULTILINE):
            complaints.append(f"{first_line(cell)}: no `!` and no magic but %%bash (and its --no-raise-error)")
        if not (rest if bash else cell.source).strip():
            complaints.append(f"{first_line(cell)}: an empty cell")
    return complaints


def ignored(lesson):
    """One output a lesson may go uncompared, if the next cell asserts its point."""
    complaints = []
    for cell in lesson.notebook.cells:
        tags = set(cell.metadata.get("tags", [])) & set(metadata_tags) - {IGNORE}
        comments = {marker for marker in comment_markers if re.search(rf"^\s*#+\s*{marker}", cell.source, re.MULTILINE)}
        if tags | comments:
            complaints.append(f"{first_line(cell)}: of nbval's marks only {IGNORE} is used, not {tags | comments}")
    if sum(map(is_ignored, lesson.code)) > 1:
        complaints.append(f"more than one cell has the tag {IGNORE}")
    for cell, following in pairwise([*lesson.code, new_code_cell()]):
        if is_ignored(cell) and not re.search(r"^assert ", following.source, re.MULTILINE):
            complaints.append(f"{first_line(cell)}: its output is ignored, so the next cell must assert its point")
    return complaints


def is_ignored(cell) -> bool:
    """Whether nbval is told not to compare the cell's output."""
    return IGNORE in cell.metadata.get("tags", [])


def clean_up(lesson):
    """The lesson ends with commands that remove what it made, and with the proof."""
    cells = [cell for cell in lesson.sections.get("Clean up", []) if cell.cell_type == "code"]
    complaints = []
    if not any(re.search(r"\bkubectl delete\b", cell.source) for cell in cells):
        complaints.append("the clean-up has no kubectl delete")
    if not cells or not cells[-1].outputs:
        complaints.append("the last cell shows nothing: it proves that nothing is left")
    return complaints


SECRETS = {
    r"PRIVATE KEY": "is a private key",
    r"BEGIN CERTIFICATE": "is a certificate",
    r"LS0tLS1CRUdJT\w*": "is a key or a certificate in base64",
    r"client-(?:key|certificate)-data": "is a credential",
    r"\beyJ[\w-]{8,}\.[\w-]{8,}": "is a token",
    r"[Bb]earer [\w.-]{10,}": "is a token",
    r"\btoken=[\w-]{10,}": "is a token",
}
UNWANTED = SECRETS | {
    r"/(?:home|root|work|Users|tmp)\b/?[\w.-]*": "is a path of somebody's machine",
    r"\beyJ[\w-]{10,}": "is a token",
    r"(?<![\w+/])[A-Za-z0-9+/]{43}=(?![\w=])": "is a key in base64",
    r"(?<![\w+/])[A-Za-z0-9+/]{80,}": "is nothing for people: a key, a certificate, or something sealed",
    r"\b(?:docker|ghcr|gcr|quay|registry\.k8s)\.io\b|\b(?:pypi|pythonhosted|golang)\.org\b": "is a registry",
    r"(?<!xmlns=\\\")https?://(?:[\w-]+\.)+(?!example\b|local\b|svc\b|test\b)[a-z]{2,}\b": "is a host of the internet",
    r"\(no change\)": "is said by chance, as a status written meanwhile is a change, too: use --output=name",
}


def private(lesson):
    """Nothing of the machine where the outputs were made, nothing secret, and nothing that chance decides."""
    return [
        f"{first_line(cell)}: its output has {match[0]!r}, which {reason}"
        for cell in lesson.code
        for pattern, reason in UNWANTED.items()
        if (match := re.search(pattern, printed(cell)))
    ]


def errors(lesson):
    """An error is shown only where it is meant."""
    complaints = []
    for cell in lesson.code:
        shown = [output.get("text", "") for output in cell.outputs if output.get("name") == "stderr"]
        failed = any(output.output_type == "error" for output in cell.outputs)
        meant = cell.source.startswith("%%bash --no-raise-error")
        if failed or (not meant and re.search(r"^(?:error|Error|Traceback)\b", "".join(shown), re.MULTILINE)):
            complaints.append(
                f"{first_line(cell)}: its output is an error; one that is meant has %%bash --no-raise-error"
            )
    return complaints


def pictures(lesson):
    """A picture is a file of this project, and is told to those who don't see it."""
    complaints = []
    for cell in lesson.prose:
        tags = re.findall(r"<img\b[^>]*>", cell.source)
        complaints += [f"{tag}: write ![what it shows](pictures/…)" for tag in tags]
        for alt, target in re.findall(r"!\[(.*?)\]\((.*?)\)", cell.source):
            if not alt.strip():
                complaints.append(f"{target} has no alternative text")
            if not (lessons.NOTEBOOKS / target).is_file():
                complaints.append(f"there is no file notebooks/{target}")
    return complaints


def links(lesson):
    """A link to a lesson leads to a heading that is there; JupyterLab has the heading's words, joined by hyphens."""
    complaints = []
    for cell in lesson.prose:
        for target, anchor in re.findall(r"\]\(([^)#\s]+\.ipynb)(?:#([^)\s]*))?\)", cell.source):
            path = lessons.NOTEBOOKS / target
            found = read(path).anchors if path.is_file() else None
            if found is None:
                complaints.append(f"there is no file notebooks/{target}")
            elif anchor and anchor not in found:
                complaints.append(f"{target} has no heading {anchor}")
    return complaints


def metadata(lesson):
    """What changes from run to run, or with the program that stored the notebook, is left out."""
    complaints = []
    if lesson.notebook.metadata.get("kernelspec") != lessons.KERNEL:
        complaints.append(f"the kernel is not {lessons.KERNEL}: run scripts/refresh {lesson.number}")
    if any("execution" in cell.metadata for cell in lesson.code):
        complaints.append(f"it tells when cells ran: run scripts/refresh {lesson.number}")
    return complaints


RULES = [counts, headings, opening, beats, exercise, prose, stems, commands, ignored, clean_up, private, errors,
         pictures, links, metadata]  # fmt: skip


def claims(lesson) -> set[str]:
    """The claims of the webinar that the first cell names."""
    return set(re.findall(r"\bW\d+\b", lesson.notebook.cells[0].source))


# ── The lessons ───────────────────────────────────────────────────────────────────────────────────────────────────

NOTEBOOKS = lessons.notebooks()


@pytest.mark.parametrize("path", NOTEBOOKS.values(), ids=lambda path: path.stem)
def test_the_lesson_keeps_the_rules(path):
    lesson = read(path)
    complaints = [complaint for rule in RULES for complaint in rule(lesson)]
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


def test_every_notebook_is_a_lesson():
    assert NOTEBOOKS, "There are no lessons."
    assert sorted(lessons.NOTEBOOKS.glob("*.ipynb")) == sorted(NOTEBOOKS.values())
    assert list(NOTEBOOKS) == [f"{number:02}" for number in range(len(NOTEBOOKS))], "The numbers have gaps."


def test_the_readme_lists_every_lesson():
    listed = re.findall(r"\(notebooks/([\w-]+)\.ipynb\)", (ROOT / "README.md").read_text())
    assert sorted(set(listed)) == [path.stem for path in NOTEBOOKS.values()]


def test_every_folder_of_manifests_has_its_lesson():
    folders = {path.name for path in (ROOT / "manifests").iterdir() if path.is_dir() and any(path.iterdir())}
    assert folders <= {path.stem for path in NOTEBOOKS.values()}


MANIFESTS = ROOT / "manifests"


@pytest.mark.parametrize("path", sorted(MANIFESTS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(MANIFESTS)))
def test_a_manifest_can_be_replayed(path):
    assert forbidden(path.read_text()) == []


def test_every_claim_of_the_webinar_is_answered():
    answered = set().union(*(claims(read(path)) for path in NOTEBOOKS.values()))
    assert len(NOTEBOOKS) < LESSONS or answered == CLAIMS, f"No lesson answers {sorted(CLAIMS - answered)}."


def secrets_in(text: str) -> list[str]:
    """What in a text nobody else may see, without showing it whole."""
    found = [(reason, re.search(pattern, text)) for pattern, reason in SECRETS.items()]
    return [f"{match[0][:12]}… at {match.start()} {reason}" for reason, match in found if match]


def test_row_48_notebooks_slides_and_logs_hold_no_secret():
    places = {ROOT / "slides": "*.md", STATE: "**/*.log", STATE / "slides": "*.html"}
    paths = [*NOTEBOOKS.values(), *(path for place, names in places.items() for path in place.glob(names))]
    found = {str(path.relative_to(ROOT)): secrets_in(path.read_text(errors="replace")) for path in paths}
    assert {path: secrets for path, secrets in found.items() if secrets} == {}


def test_row_48_the_scan_finds_what_there_is():
    made = trustme.CA().issue_cert("workshop.example")
    pems = [made.private_key_pem.bytes(), made.cert_chain_pems[0].bytes()]
    for secret in [*pems, *map(base64.b64encode, pems)]:
        assert secrets_in(f"a log with {secret.decode()} in it")
    parts = (base64.urlsafe_b64encode(os.urandom(24)).decode() for _ in range(2))
    assert secrets_in(f"the token eyJ{'.'.join(parts)} was used")
    for path in STATE.glob("*.kubeconfig"):
        assert secrets_in(path.read_text())
    assert secrets_in("a demo password, demo-1, and ZGVtby0x") == []


def test_nearly_everything_that_is_printed_is_compared():
    printing = [cell for path in NOTEBOOKS.values() for cell in read(path).code if cell.outputs]
    assert sum(map(is_ignored, printing)) <= 0.05 * len(printing)


def test_few_things_are_sanitised():
    text = (ROOT / "tests/nbval.cfg").read_text()
    rules = get_sanitize_patterns(text)
    assert text.isascii()
    assert 1 <= len(rules) == text.count("regex:") <= 6
    assert all(re.compile(pattern) for pattern, _ in rules)


# ── The rules can fail ────────────────────────────────────────────────────────────────────────────────────────────


def good() -> Lesson:
    """A lesson that every rule is content with."""

    def ran(source, *outputs, **metadata):
        made = [new_output("stream", name="stdout", text=text) for text in outputs]
        cells.append(new_code_cell(source, outputs=made, metadata=metadata))

    def said(source):
        cells.append(new_markdown_cell(source))

    cells = []
    said("# 1. It works\n\nIt takes 20 minutes and answers W1.")
    said("## You will be able to\n\n- see\n- tell\n- know")
    said("## Set up")
    ran('import lab\n\nlab.start("01-example")', "01-example\n")
    for name in "ab":
        said(f"## Experiment {name}\n\n**Predict.** What happens?")
        ran("%%bash\nkubectl get pods --output=name", "pod/votes\n")
        said("**Observe.** The Pod.")
        said("**Explain.** The ReplicaSet made it.")
    said("## Exercise\n\nMend it.")
    ran('lab.check("it works", lambda: False)', "✗ it works\n")
    ran('lab.check("it works", lambda: True)', "✓ it works\n")
    said("## What you now know\n\nThis, that, and the other.")
    said("## Clean up")
    ran("%%bash\nkubectl delete namespace 01-example\nkubectl get pods", "No resources found\n")
    for count, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), 1):
        cell.execution_count = count
    return Lesson("01-example", new_notebook(cells=cells, metadata={"kernelspec": copy.deepcopy(lessons.KERNEL)}))


def replace(old, new):
    """Return a function that changes the text of one cell."""

    def change(lesson):
        cell = next(cell for cell in lesson.notebook.cells if old in cell.source)
        cell.source = cell.source.replace(old, new)

    return change


def prints(text, stream="stdout"):
    """Return a function that makes the second code cell print something else."""
    return lambda lesson: lesson.code[1].update(outputs=[new_output("stream", name=stream, text=text)])


def tagged(*tags):
    """Return a function that gives tags to the first code cells."""

    def change(lesson):
        for cell, tag in zip(lesson.code, tags, strict=False):
            cell.metadata["tags"] = [tag]

    return change


BROKEN = [
    (counts, lambda lesson: lesson.code[0].update(execution_count=None), "scripts/refresh 01"),
    (headings, replace("# 1. It", "# It"), "begins with the claim"),
    (headings, replace("## Set up", "# Set up"), "of the first level"),
    (headings, replace("## Set up", "## Get set"), "headings are"),
    (headings, replace("- know", "- know\n\n## Set up"), "begins a cell of its own"),
    (headings, replace("## Exercise", "## Experiment"), "headings are"),
    (headings, replace("## Experiment b\n", "still a\n"), "1 experiments"),
    (opening, replace("20 minutes", "a while"), "how many minutes"),
    (opening, replace("W1", "nothing"), "names the claims"),
    (opening, replace("W1", "W23"), "no claim W23"),
    (opening, replace("- know", "- know\n- do"), "4 objectives"),
    (beats, replace("**Predict.** What", "What"), "Experiment a: the beats are Act Observe Explain"),
    (beats, replace("**Observe.**", "**Explain.**"), "the beats are Predict Act Explain Explain"),
    (beats, replace("The ReplicaSet", "word " * 80), "82 words"),
    (exercise, lambda lesson: lesson.code.pop() and lesson.code[-2].update(outputs=[]), "print ['✗']; with"),
    (prose, lambda lesson: [cell.update(source=cell.source + " word" * 45) for cell in lesson.prose], "words or more"),
    (stems, lambda lesson: setattr(lesson, "stem", "01_example"), "can't name a namespace"),
    (stems, lambda lesson: setattr(lesson, "stem", f"01-{'x' * 61}"), "can't name a namespace"),
    (stems, replace("01-example", "01-other"), "starts once"),
    (stems, replace("get pods", "apply --filename=../manifests/01-nowhere/pod.yaml"), "no folder manifests/01-nowhere"),
    (commands, replace("get pods", "get pods; sleep 5"), "'sleep' waits for a time"),
    (commands, replace("import lab", "import lab, time\ntime.sleep(5)"), "'sleep' waits for a time"),
    (commands, replace("get pods", "run a --image=workshop/votes:latest"), "names no version"),
    (commands, replace("get pods", "edit pod votes"), "opens an editor"),
    (commands, replace("get pods", "exec -it votes -- bash"), "wants a terminal"),
    (commands, replace("get pods", "get pods -w"), "never ends"),
    (commands, replace("get pods", "get pods --watch"), "never ends"),
    (commands, replace("import lab", "import lab\n!kubectl get pods"), "no `!`"),
    (commands, replace("import lab", "import lab\npods = !kubectl get pods"), "no `!`"),
    (commands, replace("%%bash", "%%sh"), "no magic but %%bash"),
    (commands, lambda lesson: lesson.code[1].update(source="%%bash\n"), "an empty cell"),
    (ignored, tagged("nbval-skip"), "only nbval-ignore-output is used"),
    (ignored, replace("import lab", "# NBVAL_IGNORE_OUTPUT\nimport lab"), "only nbval-ignore-output is used"),
    (ignored, tagged(IGNORE), "the next cell must assert its point"),
    (ignored, tagged(IGNORE, IGNORE), "more than one cell"),
    (clean_up, replace("kubectl delete", "echo delete"), "no kubectl delete"),
    (clean_up, lambda lesson: lesson.code[-1].update(outputs=[]), "proves that nothing is left"),
    (private, prints("/home/ada/kit\n"), "'/home/ada', which is a path"),
    (private, prints("-----BEGIN RSA PRIVATE KEY-----\n"), "is a private key"),
    (private, prints("client-key-data: LS0t\n"), "is a credential"),
    (private, prints("-----BEGIN CERTIFICATE-----\n"), "is a certificate"),
    (private, prints("tls.crt: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0t\n"), "in base64"),
    (private, prints(f"secret: {'aB3+' * 10}xyz=\n"), "is a key in base64"),
    (private, prints(f"code: Ag{'aB3+' * 100}\n"), "is nothing for people"),
    (private, prints("http://127.0.0.1:8888/lab?token=0123456789abcdef\n"), "is a token"),
    (private, prints("eyJhbGciOiJSUzI1NiIsImtpZCI6\n"), "is a token"),
    (private, prints("Authorization: Bearer 31ada4fd-adec\n"), "is a token"),
    (private, prints("pulling docker.io/library/debian\n"), "is a registry"),
    (private, prints("deployment.apps/votes patched (no change)\n"), "is said by chance"),
    (private, prints("GET https://mirror.acme.com/simple\n"), "is a host"),
    (errors, lambda lesson: lesson.code[1].update(outputs=[new_output("error", ename="E")]), "is an error"),
    (errors, prints("Error from server (NotFound)\n", "stderr"), "is an error"),
    (pictures, replace("## Set up", "## Set up\n\n![](pictures/none.svg)"), "no alternative text"),
    (pictures, replace("## Set up", "## Set up\n\n![A Pod](pictures/none.svg)"), "no file notebooks/pictures/none.svg"),
    (pictures, replace("## Set up", '## Set up\n\n<img src="pictures/none.svg">'), "write ![what it shows]"),
    (links, replace("## Set up", "## Set up\n\n[There](99-nowhere.ipynb)"), "no file notebooks/99-nowhere.ipynb"),
    (links, replace("## Set up", "## Set up\n\n[There](00-start-here.ipynb#Not-there)"), "no heading Not-there"),
    (metadata, lambda lesson: lesson.notebook.metadata.update(kernelspec={"name": "bash"}), "the kernel is not"),
    (metadata, lambda lesson: lesson.code[0].metadata.update(execution={"iopub.status.idle": "now"}), "when cells ran"),
]


NAMES = [f"{rule.__name__}-{number}" for number, (rule, *_) in enumerate(BROKEN)]


@pytest.mark.parametrize(("rule", "break_it", "said"), BROKEN, ids=NAMES)
def test_a_broken_rule_is_told(rule, break_it, said):
    lesson = good()
    assert [complaint for each in RULES for complaint in each(lesson)] == []
    break_it(lesson)
    complaints = rule(lesson)
    assert any(said in complaint for complaint in complaints), complaints


def test_every_rule_can_fail():
    assert {rule for rule, *_ in BROKEN} == set(RULES)


# ── The comparison can fail ───────────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_output_fails_the_lesson_and_leaves_nothing(cluster, tmp_path):
    """Of four cells the third does not print what is stored: the fourth is not run, and the namespace is removed."""
    name = f"test-lessons-{os.getpid()}"
    create = f"%%bash\nkubectl create namespace {name}\nkubectl label --output=name namespace {name} {LABEL}={OWNER}"
    cells = [
        ("print(1)", "1\n"),
        (create, f"namespace/{name} created\nnamespace/{name}\n"),
        ("print(3)", "33\n"),
        ("print(4)", "4\n"),
    ]
    made = [
        new_code_cell(source, execution_count=1, outputs=[new_output("stream", name="stdout", text=text)])
        for source, text in cells
    ]
    path = tmp_path / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=made, metadata={"kernelspec": lessons.KERNEL}), path)
    command = [sys.executable, "-m", "pytest", f"--config-file={ROOT / 'pyproject.toml'}", str(path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert "1 failed, 2 passed, 1 skipped" in result, result
    assert cluster.kubectl("get", "namespace", name, "--ignore-not-found").stdout == ""
