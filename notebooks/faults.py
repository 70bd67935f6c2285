"""Faults that a lesson injects into nodes. Repaired by `heal`, by a cell that fails, and when the kernel ends."""

import os
import subprocess
import sys
from pathlib import Path

from IPython import get_ipython

from lab import Problem

_HEAL = [sys.executable, Path(__file__).resolve().parent.parent / "scripts" / "cluster", "heal"]
_hurt = set()  # the nodes that this notebook has stopped, and that were not healed yet
_guards = []  # what heals them if this kernel ends before it has


def workers() -> list[str]:
    """The names of the cluster's worker nodes."""
    cluster = os.environ.get("KIND_CLUSTER_NAME") or "state"
    return [f"{cluster}-worker", f"{cluster}-worker2"]


def stop_node(node: str) -> None:
    """Stop a worker as a power failure would: at once, with all that runs on it.

    Raises:
        Problem: it is no worker of this cluster, or does not run.
    """
    if node not in workers():
        raise Problem(f"{node} is no worker of this cluster; those are {' and '.join(workers())}.")
    state = _docker("inspect", "--format={{.State.Status}}", node)
    if state != "running":
        raise Problem(f"The node {node} is {state} already. Run scripts/cluster heal, then this lesson from the top.")
    _hurt.add(node)
    _guard()
    _docker("kill", node)  # and not `stop`, which lets programs say goodbye


def heal() -> None:
    """Start what was stopped, and wait until the whole cluster is usable again (`scripts/cluster heal`).

    Raises:
        Problem: it does not become usable; the sentence of `scripts/cluster heal` says why.
    """
    done = subprocess.run(_HEAL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Problem(done.stderr.strip())
    _hurt.clear()
    while _guards:
        _guards.pop().communicate("healed\n")


def _docker(*arguments):
    """What the engine answers."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Problem(f"docker {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def _heal_after(cell):
    """Repair after a cell that failed."""
    if _hurt and not cell.success:
        heal()


def _guard():
    """Have a process that heals as soon as this kernel has ended, however it ends."""
    if not _guards:
        # This pipe breaks with the kernel, even one that is killed; unless all is well, it says nothing before.
        wait, quiet = ["sh", "-c", 'read word || exec "$0" "$@"', *_HEAL], subprocess.DEVNULL
        _guards.append(subprocess.Popen(wait, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, text=True,
                                        start_new_session=True))  # fmt: skip


if shell := get_ipython():
    shell.events.register("post_run_cell", _heal_after)
