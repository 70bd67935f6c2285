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


def inotify() -> str:
    """The kernel's file-watching limits, which three nodes share."""
    limit = Path("/proc/sys/fs/inotify/max_user_instances")
    if limit.exists() and int(limit.read_text()) < 128:
        raise Warning(
            f"Only {limit.read_text().strip()} inotify instances are allowed; a cluster needs about 60, "
            "and the tests make two.",
            "sudo sysctl fs.inotify.max_user_instances=512",
        )
    return "The kernel's inotify limits are high enough"


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
