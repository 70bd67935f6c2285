"""What is wrong with this machine, each with its remedy. Runs on a bare Python and changes nothing."""

import os
import platform
import shutil
import sys
from pathlib import Path

from kit import CACHE, ROOT, cluster, engine, images, tools
from kit.console import Failure

GIGABYTE = 10**9


def examine() -> int:
    """Print one line for each thing looked at; returns 0 if nothing must be mended, else 1."""
    problems = 0
    for look in (python, folders, the_engine, capability, disk, memory, inotify, ports, prepared, the_cluster):
        try:
            print(f"✓ {look()}")
        except Failure as failure:
            warning = isinstance(failure, Warning)
            print(f"{'!' if warning else '✗'} {failure.cause}\n  → {failure.remedy}")
            problems += not warning
            if look is the_engine:  # all that follows would say the same again
                print("The rest can be looked at when the engine answers.")
                break
    return 1 if problems else 0


class Warning(Failure):
    """Worth knowing, but the workshop may run all the same."""


def python() -> str:
    """The Python that runs this."""
    if sys.version_info < tools.OLDEST_PYTHON:
        raise Failure(
            f"Python {platform.python_version()} is too old; 3.11 is needed.", "Install Python 3.11 or newer."
        )
    return f"Python {platform.python_version()}"


def folders() -> str:
    """Whether the clone and the cache can be written."""
    for folder in (ROOT, CACHE):
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(nearest, os.W_OK):
            raise Failure(
                f"{folder} may not be written by you.",
                "Make it yours (chown), or move the clone or XDG_CACHE_HOME to where you may write.",
            )
    return f"The clone and {CACHE} can be written"


def the_engine() -> str:
    """The container engine."""
    return f"Docker {engine.look()['Version']} answers at {engine.address()} (cgroup v{engine.cgroup_version()})"


def capability() -> str:
    """Whether root may do what the engine asks for."""
    if not engine.lacks_capability():
        return "Containers may have all capabilities"
    if engine.restricts():
        return "This host withholds CAP_SYS_RESOURCE; the engine uses the workshop's runtime, which does without it"
    raise Warning(
        "This host withholds CAP_SYS_RESOURCE, and the running engine was not started by the workshop.",
        "If nodes fail with 'unable to apply caps', stop that engine and run scripts/setup as root.",
    )


def disk() -> str:
    """Room for images and volumes."""
    root = Path(images.docker("info", "--format", "{{.DockerRootDir}}", timeout=10).stdout.strip())
    place = root if root.exists() else CACHE.parent
    free = shutil.disk_usage(place if place.exists() else "/").free
    if free < 5 * GIGABYTE:
        raise Failure(
            f"Only {free / GIGABYTE:.1f} GB are free where Docker keeps its data; 5 GB are needed.",
            "Free some, for example with docker system prune.",
        )
    return f"{free / GIGABYTE:.0f} GB are free where Docker keeps its data"


def memory() -> str:
    """Memory for three nodes and a browser."""
    total = int(images.docker("info", "--format", "{{.MemTotal}}", timeout=10).stdout)
    if total < 3 * GIGABYTE:
        raise Warning(
            f"The engine has only {total / GIGABYTE:.1f} GB of memory; the workshop wants 4 GB.",
            "Give Docker more memory (in Docker Desktop: Settings, Resources).",
        )
    return f"The engine has {total / GIGABYTE:.0f} GB of memory"


INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")

# What the nodes of the workshop hold of them, about, idle: counted with find /proc/*/fd -lname anon_inode:inotify.
HELD = {"control-plane": 30, "worker": 15}


def inotify() -> str:
    """How many programs may watch files: the nodes of all clusters share what Linux gives a user."""
    if not INOTIFY.exists():
        return "The kernel's inotify limits are the engine's affair"
    limit = int(INOTIFY.read_text())
    needed = 2 * HELD["control-plane"] + 2 * HELD["worker"]  # three nodes, and the one that a lesson throws away
    others = other_nodes()
    if limit < needed + sum(others.values()):
        running = f", and {', '.join(others)} may hold {sum(others.values())} now" if others else ""
        raise Warning(
            f"Only {limit} inotify instances are allowed; the workshop needs about {needed}{running}.",
            cluster.MORE_WATCHES,
        )
    return f"{limit} inotify instances are allowed, enough for the workshop's nodes"


def other_nodes() -> dict[str, int]:
    """The running nodes of all kind clusters but ours, whoever made them, with what each may hold."""
    form = '{{.Names}} {{.Label "io.x-k8s.kind.cluster"}} {{.Label "io.x-k8s.kind.role"}}'
    shown = images.docker("ps", "--filter", "label=io.x-k8s.kind.cluster", "--format", form, timeout=10).stdout
    rows = [line.split() for line in shown.splitlines()]
    return {node: HELD.get(role, 0) for node, its_cluster, role in rows if its_cluster != cluster.name()}


def ports() -> str:
    """The Ingress ports, as far as our own cluster does not hold them."""
    if held := cluster.ports():
        return f"The Ingress ports are {held['http']} and {held['https']}"
    http, https = cluster.choose_ports()
    return f"The Ingress ports will be {http} and {https}"


def prepared() -> str:
    """What set-up leaves behind."""
    missing = [
        what
        for what, there in {
            "the Python packages": tools.COMPLETE.exists(),
            "kind": tools.KIND.exists(),
            "the Gateway API": tools.GATEWAY_API.exists(),
            "the workshop's images": images.workshop_archive().exists(),
            "the node image": images.label(images.own_node(), images.LABEL) is not None,
        }.items()
        if not there
    ]
    if missing:
        raise Failure(f"Not set up yet: {', '.join(missing)}.", "Run scripts/setup.")
    return "Everything is set up"


def the_cluster() -> str:
    """The cluster of this name."""
    state, sentence = cluster.status()
    if state != "usable":
        raise Failure(*sentence.split(". ", 1))
    return sentence.rstrip(".")
