"""An extension of every lesson's kernel: it tells failures in few words, and which cell above was left out, if one was.

`scripts/kit/classroom.py` has IPython load it, because it must help before the first cell has imported anything.
"""

import json
import os
import re
import subprocess
from pathlib import Path

OPTIONAL = ("stub", "solution")  # how the tags end of what a learner may skip, or write anew


def load_ipython_extension(shell) -> None:
    """Explain every failure of this kernel's cells; and until lab.start has run, let kubectl reach no cluster."""
    os.environ["KUBECONFIG"] = str(Path(__file__).with_name("before-set-up.kubeconfig"))
    # A command's own words stand above this; Python's traceback would only bury them.
    subprocess.CalledProcessError._render_traceback_ = lambda error: [f"The cell stopped: {error.returncode}."]
    shell.set_custom_exc((Exception,), explain)


def explain(shell, kind, error, trace, tb_offset=None) -> None:
    """Show a failure as usual, and which cell to run first; of an unknown name nothing but that can be of use."""
    cell = missing(os.environ.get("JPY_SESSION_NAME", ""), shell.history_manager.input_hist_raw)
    if cell:
        tell = getattr(error, "_render_traceback_", None)
        usual = tell() if tell else shell.InteractiveTB.structured_traceback(kind, error, trace, tb_offset=tb_offset)
        error._render_traceback_ = lambda: [cell] if isinstance(error, NameError) else [*usual, cell]
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)


def missing(notebook: str, ran: list[str]) -> str | None:
    """Name the first cell above the one that has just run which has not been run, in a sentence; None if there is none.

    Args:
        notebook: the path of the notebook, as it was last saved.
        ran: the cells that the kernel has run, oldest first.
    """
    if not notebook.endswith(".ipynb") or not Path(notebook).exists():
        return None
    starts = [place for place, source in enumerate(ran) if "lab.start(" in source]
    done = {source.strip() for source in ran[starts[-1] if starts else 0 :]}
    heading = ""
    for cell in json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            heading = re.findall(r"^##? (.+)$", source, re.MULTILINE)[-1:] or heading
        elif source == ran[-1].strip():
            return None
        elif source not in done and not any(tag.endswith(OPTIONAL) for tag in cell["metadata"].get("tags", [])):
            first = next(line for line in source.splitlines() if not line.startswith("%%"))
            return f'First run the cell under "{"".join(heading)}" that begins with: {first}'
    return None  # a cell of the learner's own
