"""What tests/conftest.py adds to nbval, shown by replays of small notebooks; what every cell must bear."""

import subprocess
import sys

import nbformat
import pytest
from kit import ROOT, lessons
from kit import cluster as our_cluster

# The kernel says at once that the cell is done, and for 6 s nothing to those who wait for the end of its output.
STALL = """
import sys, time
print("printed", flush=True)
sys.stdout.flush_timeout = sys.stderr.flush_timeout = 0
get_ipython().kernel.iopub_thread.schedule(lambda: time.sleep(6))
"""
# With its patience back: a kernel that never waits for its output sends some of it after it has said that it is done.
GO_ON = """
sys.stdout.flush_timeout = sys.stderr.flush_timeout = 10
print(1 + 1)
"""


@pytest.fixture
def replay(tmp_path):
    """Return a function that writes a notebook of cells with what they should print, and starts its replay."""

    def start(*cells):
        made = []
        for count, (source, printed) in enumerate(cells, start=1):
            outputs = [nbformat.v4.new_output("stream", name="stdout", text=printed)]
            made.append(nbformat.v4.new_code_cell(source, execution_count=count, outputs=outputs))
        path = tmp_path / "tiny.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=made), path)
        command = [sys.executable, "-m", "pytest", "--quiet", "--config-file=pyproject.toml", "--keep-cluster", path]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    return start


def test_row_55_output_that_is_late_is_waited_for(cluster, replay):
    assert "2 passed" in replay((STALL, "printed\n"), (GO_ON, "2\n")).communicate()[0]


def test_a_cell_that_prints_something_else_fails_and_those_below_are_skipped(cluster, replay):
    assert "1 failed, 1 skipped" in replay(("print(1 + 1)", "3\n"), ("print(2)", "2\n")).communicate()[0]


def test_a_failure_shows_what_the_cell_printed(cluster, replay):
    said = replay(("import sys; print('good'); print('a warning', file=sys.stderr)", "good\n")).communicate()[0]
    assert "Unexpected output fields" in said and "The cell's stderr" in said and "a warning" in said


def test_a_second_replay_on_the_cluster_waits_for_the_first(cluster, replay):
    hold = f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); from kit import lessons\n"
    hold += "with lessons.turn(): print('mine', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "mine\n"
        second = replay(("print(2)", "2\n"))
        assert f"Process {holder.pid} is at work on the lessons" in second.stdout.readline()
        assert second.poll() is None
    finally:
        holder.communicate("")
    assert "1 passed" in second.communicate()[0]


def test_a_cluster_that_a_lesson_did_not_throw_away_is_removed(cluster, replay, monkeypatch):
    its = f"{cluster.name}-{'tiny'[:2]}"
    make = f"%%bash\nKIND_CLUSTER_NAME={its} {ROOT}/scripts/cluster up --single > /dev/null\necho made"
    said = replay((make, "made\n")).communicate()[0]
    assert "1 passed, 1 error" in said and f"The lesson left behind: container/{its}-control-plane" in said
    monkeypatch.setenv("KIND_CLUSTER_NAME", its)
    assert our_cluster.nodes() == {}


@pytest.fixture
def turn(path):
    """The lesson's turn: together with other lessons, unless it stops nodes."""
    with lessons.turn(shared="import faults" not in path.read_text()):
        yield
        our_cluster.heal()
        lessons.delete_namespaces(path.stem)
        lessons.remove_cluster(path.stem)


@pytest.mark.beside
@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", lessons.notebooks().values(), ids=lambda path: path.stem)
def test_row_30_every_cell_of_a_lesson_may_be_run_twice(cluster, turn, path):
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code" for _ in range(2)]
    lessons.client(notebook, path.parent).execute()
