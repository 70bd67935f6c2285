"""The checks of the exercises, taken out of the notebooks: none is content with the untouched lesson or a wrong fix."""

import os
import subprocess

import nbformat
import pytest
from kit import ROOT, lessons

PATCH = "kubectl patch deployment votes --patch '%s' && kubectl rollout status deployment/votes --timeout=60s"


def bash(script):
    """Run what a %%bash cell would run; its failure is the test's."""
    result = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


class Exercise:
    """A lesson's notebook, begun in a namespace of the test's own, with the manifests that its exercise builds on."""

    def __init__(self, number, namespace, *manifests):
        path = lessons.notebooks()[number]
        self.cells = nbformat.read(path, as_version=4).cells
        self.names = {}
        os.chdir(path.parent)
        (start,) = [cell.source for cell in self.cells if "lab.start(" in cell.source]
        self.run(start.replace(path.stem, namespace))
        for manifest in manifests:
            bash(f"kubectl apply --filename=../manifests/{path.stem}/{manifest}.yaml")

    def tagged(self, tag):
        """The source of the cell with the tag: stub, check or solution."""
        (source,) = [cell.source for cell in self.cells if tag in cell.metadata.get("tags", [])]
        return source

    def containing(self, text):
        """The source of the code cell with the text."""
        (source,) = [cell.source for cell in self.cells if cell.cell_type == "code" and text in cell.source]
        return source

    def run(self, source):
        """Run a cell."""
        magic, _, script = source.partition("\n")
        if magic.startswith("%%bash"):
            bash(script)
        else:
            exec(compile(source, "a cell", "exec"), self.names)


@pytest.fixture
def exercise(cluster, monkeypatch):
    """Return a function that gives the exercise of a lesson; its namespaces are removed afterwards."""
    before, namespace = dict(os.environ), f"test-checks-{os.getpid()}"
    monkeypatch.chdir(ROOT)
    yield lambda number, *manifests: Exercise(number, namespace, *manifests)
    os.environ.clear()
    os.environ.update(before)
    lessons.delete_namespaces(namespace)


def marks(capsys):
    """What the check that has just run thinks of each claim."""
    return "".join(line[0] for line in capsys.readouterr().out.splitlines() if line[0] in "✓✗")


def test_01_a_rollout_without_loss(exercise, capsys):
    lesson = exercise("01", "service", "exercise")
    lesson.run(lesson.tagged("stub"))
    lesson.run(lesson.tagged("check"))
    assert marks(capsys) == "✓✓✗"
    lesson.run(lesson.tagged("solution"))
    lesson.run("check_exercise()")
    assert marks(capsys) == "✓✓✓"

    # The wrong shortcuts, tried on what is right in everything else:
    bash(PATCH % '{"spec": {"replicas": 1}}')
    lesson.run("check_exercise()")
    assert marks(capsys).startswith("✗✓")
    bash(PATCH % '{"spec": {"replicas": 3, "strategy": {"type": "Recreate", "rollingUpdate": null}}}')
    lesson.run("check_exercise()")
    assert marks(capsys) == "✓✗✗"


def test_00_the_name_of_the_default_class(exercise, capsys):
    lesson = exercise("00", "claim")
    lesson.run(lesson.tagged("stub"))
    lesson.run(lesson.tagged("check"))
    assert marks(capsys) == "✗"
    lesson.names["answer_of_yours"] = "fast"
    lesson.run("check_exercise()")
    assert marks(capsys) == "✗"
    lesson.run(lesson.tagged("solution"))
    lesson.run("check_exercise()")
    assert marks(capsys) == "✓"


def test_02_a_route_with_its_port_and_its_secret(exercise, capsys):
    lesson = exercise("02", "base/deployment", "base/service")
    bash("kubectl rollout status deployment/votes --timeout=60s")
    for text in ("def issue(", "def visit(", 'issue("exercise", '):
        lesson.run(lesson.containing(text))
    lesson.run(lesson.tagged("begin"))
    lesson.run(lesson.tagged("stub"))
    capsys.readouterr()
    lesson.run(lesson.tagged("check"))
    assert marks(capsys) == "✗✗✓✓"

    def after(*changes):
        """What the check thinks of the Ingress of the exercise, changed by a JSON patch."""
        bash("kubectl replace --filename=../manifests/02-ingress-ends-tls/exercise.yaml")
        patch = ", ".join(changes)
        bash(f"kubectl patch ingress exercise --type=json --patch='[{patch}]'")
        lesson.run("check_exercise()")
        return marks(capsys)

    # The wrong shortcuts: the port only, so that no more than --insecure works; no TLS at all.
    port = '{"op": "replace", "path": "/spec/rules/0/http/paths/0/backend/service/port/number", "value": 80}'
    assert after(port) == "✓✗✓✓"
    assert after(port, '{"op": "remove", "path": "/spec/tls"}') == "✓✗✓✓"

    lesson.run(lesson.tagged("solution"))
    lesson.run("check_exercise()")
    assert marks(capsys) == "✓✓✓✓"
    assert after() == "✗✓✓✓"

    # Now the Secret is there: a default backend answers everybody; another port of the Service is other people's loss.
    backend = '{"service": {"name": "votes", "port": {"number": 80}}}'
    everybody = f'{{"op": "add", "path": "/spec/defaultBackend", "value": {backend}}}'
    assert after('{"op": "remove", "path": "/spec/rules"}', everybody) == "✓✓✗✓"
    other_port = '[{"op": "replace", "path": "/spec/ports/0/port", "value": 8080}]'
    bash(f"kubectl patch service votes --type=json --patch='{other_port}'")
    assert after() == "✓✓✓✗"
