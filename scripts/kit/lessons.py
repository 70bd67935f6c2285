"""The lessons: finding their notebooks, storing what they print, and removing what a run leaves in the cluster."""

import os
import subprocess
from itertools import product
from pathlib import Path

from kit import CACHE, LABEL, OWNER, ROOT, cluster
from kit.console import Failure, only_one, run
from kit.images import docker

NOTEBOOKS = ROOT / "notebooks"
CELL_SECONDS = 180
VOLUMES = ("/var/local-path-provisioner", cluster.SHARED)  # where nodes keep the bytes of volumes

# As JupyterLab writes it; a notebook that a learner opens and saves then differs in what the learner changed.
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def notebooks(folder: Path = NOTEBOOKS) -> dict[str, Path]:
    """Every lesson's notebook by its number: {"01": …/01-stateless-apps-scale.ipynb}."""
    return {path.stem[:2]: path for path in sorted(folder.glob("[0-9][0-9]-*.ipynb"))}


def turn(shared: bool = False):
    """Hold the cluster's lessons while a block runs: two replays would take each other's namespaces away.

    Args:
        shared: the block bears others beside it, in lessons of their own.
    """
    return only_one(CACHE / f"lessons-{cluster.name()}.lock", f"the lessons of the cluster {cluster.name()}", shared)


def delete_namespaces(stem: str) -> list[str]:
    """Delete what a lesson has left: our namespaces called as it is, or beginning so ("02-ingress-ends-tls-prod").

    Returns:
        Their names.

    Raises:
        Failure: they are not gone within a minute.
    """
    shown = cluster.kubectl("get", "namespaces", f"--selector={LABEL}={OWNER}", "--output=name").stdout
    names = [name.removeprefix("namespace/") for name in shown.split()]
    left = [name for name in names if name == stem or name.startswith(f"{stem}-")]
    if not left:
        return left
    namespaced = "--output=jsonpath={.items[?(@.spec.scope=='Namespaced')].metadata.name}"
    kinds = cluster.kubectl("get", "customresourcedefinitions", f"--selector={LABEL}={OWNER}", namespaced).stdout
    for kind, name in product(kinds.split(), left):
        where = (kind, f"--namespace={name}")
        cluster.kubectl("delete", *where, "--all", "--wait=false", check=False)
        for each in cluster.kubectl("get", *where, "--output=name", check=False).stdout.split():
            # Whoever answers to its finalizers may be gone: a lesson's operator ends with its kernel.
            change = '{"metadata": {"finalizers": null}}'
            cluster.kubectl("patch", each, f"--namespace={name}", "--type=merge", f"--patch={change}", check=False)
    cluster.kubectl("delete", "namespace", *left, "--timeout=60s",
                    remedy=f"See what holds it: kubectl get namespace {left[0]} --output=yaml")  # fmt: skip
    return left


def inventory() -> set[str]:
    """Everything that a lesson could leave behind.

    Returns:
        Objects that are in no namespace ("storageclass.storage.k8s.io/08-grow"), namespaces among them; the directories
        of volumes on the nodes ("state-worker:/shared/photos"); and of what the engine has with our label the clusters
        to be thrown away.
    """
    kinds = cluster.kubectl("api-resources", "--namespaced=false", "--verbs=list,delete", "--output=name").stdout
    kinds = [kind for kind in kinds.split() if not kind.startswith("ipaddresses.")]  # they come and go with Services
    found = cluster.kubectl("get", ",".join(kinds), "--output=name").stdout.split()
    for node in cluster.nodes():
        places = docker("exec", node, "find", *VOLUMES, "-mindepth", "1", "-maxdepth", "1", check=False).stdout
        found += [f"{node}:{place}" for place in places.split()]
    ours = ("--filter", f"label={LABEL}={OWNER}", "--filter", f"name={cluster.name()}-", "--format")
    found += docker("ps", "--all", *ours, "container/{{.Names}}").stdout.split()
    found += docker("volume", "ls", *ours, "volume/{{.Name}}").stdout.split()
    return set(found)


def remove_cluster(stem: str) -> None:
    """Remove the cluster that a lesson was to throw away (lab.throw_away), if it has left one."""
    its = {"KIND_CLUSTER_NAME": f"{cluster.name()[:27]}-{stem[:2]}"}
    run([ROOT / "scripts/cluster", "down", "--single"], env=os.environ | its)


def client(notebook, folder: Path, **options):
    """What runs the cells of a notebook, in a kernel that works in the folder; the options are nbclient's."""
    from nbclient import NotebookClient

    resources = {"metadata": {"path": folder}}
    return NotebookClient(notebook, kernel_name=KERNEL["name"], resources=resources, timeout=CELL_SECONDS, **options)


def refresh(path: Path, say=lambda text: None) -> str:
    """Run a lesson in a new kernel and store its outputs, all of them or none; returns what was done.

    Raises:
        Failure: a cell failed or took too long; it shows the cell and what it printed.
    """
    import nbformat
    from nbclient.exceptions import CellControlSignal, DeadKernelError

    notebook = nbformat.read(path, as_version=4)
    running = 0

    def show(cell_index: int, **_) -> None:
        nonlocal running
        running = cell_index
        say(f"{path.stem}: cell {cell_index + 1} of {len(notebook.cells)}")

    runner = client(notebook, path.parent, coalesce_streams=True, record_timing=False,
                    on_cell_start=lambda cell, cell_index: show(cell_index))  # fmt: skip
    try:
        runner.execute(stderr=subprocess.DEVNULL)  # the kernel's own log; what a cell writes there comes another way
    except AssertionError:  # on Ctrl-C nbclient ends the kernel, and then trips over having none
        raise KeyboardInterrupt from None
    except (CellControlSignal, DeadKernelError) as error:
        cell = notebook.cells[running]
        raise Failure(f"{path.stem}, cell {running + 1}, failed:\n{_indented(cell, error)}",
                      "Mend it and refresh again; the notebook is as it was.") from None  # fmt: skip
    tidy(notebook)
    part = path.with_suffix(".part")
    nbformat.write(notebook, part)
    os.replace(part, path)
    return f"{sum(cell.cell_type == 'code' for cell in notebook.cells)} cells stored"


def tidy(notebook) -> None:
    """Take out of a notebook what would change from run to run, or with the program that wrote it."""
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {key: cell.metadata[key] for key in ("jupyter", "tags") if key in cell.metadata}


def _indented(cell, error) -> str:
    """A cell that failed, in a few lines: the code, the last lines that it printed, and the error."""
    printed = "".join(output.get("text", "") for output in cell.get("outputs", []))
    what = getattr(error, "ename", type(error).__name__)
    why = getattr(error, "evalue", str(error)).strip().splitlines()[:1]
    lines = [*cell.source.splitlines()[:12], "", *printed.splitlines()[-8:], f"{what}: {''.join(why)[:200]}"]
    return "\n".join(f"    {line}" for line in lines)
