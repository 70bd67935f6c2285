"""notebooks/guide.py in a real kernel: what a learner reads who runs cells out of order (row 31 of the faults)."""

import shutil

import nbformat
import pytest
from kit import ROOT, lessons
from nbclient.exceptions import CellExecutionError

TINY = [
    nbformat.v4.new_markdown_cell("# A lesson\n\n## Set up"),
    nbformat.v4.new_code_cell("word = 'known'"),
    nbformat.v4.new_markdown_cell("## Saying it"),
    nbformat.v4.new_code_cell("%%bash\ntrue"),
    nbformat.v4.new_code_cell("# not yours yet", metadata={"tags": ["stub"]}),
    nbformat.v4.new_code_cell("print(word)"),
    nbformat.v4.new_code_cell("1 / 0"),
    nbformat.v4.new_code_cell("%%bash\nkubectl get pods"),
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs some cells of a notebook in one kernel and gives what the last one says."""
    for name in ("guide.py", "before-set-up.kubeconfig"):
        shutil.copy(ROOT / "notebooks" / name, tmp_path)

    def run_cells(cells, *places):
        path = tmp_path / "lesson.ipynb"
        notebook = nbformat.v4.new_notebook(cells=cells)
        nbformat.write(notebook, path)
        monkeypatch.setenv("JPY_SESSION_NAME", str(path))
        client = lessons.client(notebook, tmp_path)
        with client.setup_kernel():
            for place in places:
                try:
                    client.execute_cell(notebook.cells[place], place)
                except CellExecutionError:
                    assert place == places[-1]
        outputs = notebook.cells[places[-1]].outputs
        return "".join("\n".join(each.get("traceback", [])) or each.get("text", "") for each in outputs)

    return run_cells


def test_an_unknown_name_leads_to_the_first_cell_that_was_left_out(run):
    assert run(TINY, 5) == "First run the cell under \"Set up\" that begins with: word = 'known'"


def test_the_next_one_is_named_after_the_first_was_run(run):
    assert "ZeroDivisionError" in (said := run(TINY, 1, 6))
    assert said.endswith('First run the cell under "Saying it" that begins with: true')


def test_a_failure_in_good_order_is_told_as_ever(run):
    assert "First run" not in run(TINY, 1, 3, 5, 6)
    assert run(TINY, 1, 3, 5) == "known\n"


def test_kubectl_reaches_nothing_before_set_up(run):
    assert 'none yet. Run the cell under "Set up" first.\nThe cell stopped: 1.\n' in run(TINY, 7)


@pytest.mark.parametrize("path", lessons.notebooks().values(), ids=lambda path: path.stem)
def test_in_every_lesson_each_cell_that_comes_too_early_names_set_up(run, path):
    cells = nbformat.read(path, as_version=4).cells
    code = [place for place, cell in enumerate(cells) if cell.cell_type == "code"]
    last = max(place for place in code if not cells[place].source.startswith("%%"))
    assert 'First run the cell under "Set up"' in run(cells, last)
