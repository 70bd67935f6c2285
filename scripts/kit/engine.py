"""The container engine: the one that answers, or Docker from Debian's packages, started detached."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from kit import CACHE, console, restricted_runtime
from kit.console import Failure, run, until

# kind needs the API that came with this version (private cgroup namespaces).
OLDEST_VERSION, OLDEST_API = (20, 10), (1, 41)

LOG = CACHE / "engine" / "dockerd.log"


class Absent(Failure):
    """Nothing answers at the engine's address."""


class Silent(Failure):
    """Something listens at the engine's address and says nothing: it hangs, or it is still starting."""


def _numbers(version: str) -> tuple:
    """The leading numbers of a version: "20.10.24+dfsg1" → (20, 10)."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def address() -> str:
    """Where the Docker client looks for the engine: DOCKER_HOST, its current context, or the usual socket."""
    if host := os.environ.get("DOCKER_HOST"):
        return host
    with contextlib.suppress(Failure):
        shown = run(["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"], check=False, timeout=4)
        if shown.returncode == 0:
            return shown.stdout.strip()
    return "unix:///var/run/docker.sock"


def look() -> dict:
    """What `docker version` says of the engine.

    Returns:
        The Server part of its answer: Version, ApiVersion, Os, Arch and more.

    Raises:
        Failure: no client, no engine, no permission, or an engine that is too old.
    """
    if not shutil.which("docker"):
        raise Failure("There is no `docker` command on PATH.", _how_to_install())
    try:
        answer = run(["docker", "version", "--format", "{{json .Server}}"], check=False, timeout=4)
    except Failure:
        raise Silent(f"Docker at {address()} does not answer within 4 s.", "Restart Docker, then try again.") from None
    if answer.returncode or answer.stdout.strip() in ("", "null"):
        if "permission denied" in answer.stderr.lower():
            raise Failure(
                f"You may not use Docker at {address()}.",
                "Add yourself to its group (sudo usermod -aG docker $USER, then log in again), or use sudo.",
            )
        raise Absent(f"Docker is not running: nothing answers at {address()}.", _how_to_start())
    server = json.loads(answer.stdout)
    if _numbers(server["Version"]) < OLDEST_VERSION or _numbers(server["ApiVersion"]) < OLDEST_API:
        raise Failure(
            f"Docker {server['Version']} (API {server['ApiVersion']}) is too old; kind needs 20.10 (API 1.41).",
            "Install a newer Docker engine.",
        )
    return server


def _how_to_install() -> str:
    if sys.platform == "darwin":
        return "Install Docker Desktop or Colima, start it, and try again."
    return "Install Docker (on Debian or Ubuntu as root, scripts/setup does it), start it, and try again."


def _how_to_start() -> str:
    if os.environ.get("DOCKER_HOST"):
        return "DOCKER_HOST is set: start the engine there, or unset DOCKER_HOST."
    if sys.platform == "darwin":
        return "Start Docker Desktop (or colima start), then try again."
    return "Start it (sudo systemctl start docker), or run scripts/setup as root, then try again."


def ensure(say=lambda text: None) -> str:
    """Have an engine that answers: the running one, else one installed and started here when we are root on Debian.

    Args:
        say: told what is being done.

    Returns:
        What was found or done, in a few words.

    Raises:
        Failure: none answers and none can be started.
    """
    try:
        return f"Docker {look()['Version']}, already running"
    except Silent:
        # dockerd listens long before it answers: after a crash it first clears away every container that was running.
        say("waiting for Docker to answer")
        if not (server := until(_answers, 60)):
            raise
        return f"Docker {server['Version']}, already starting"
    except Failure as failure:
        # Only the engine of this machine, as its root: never one that somebody pointed us at.
        if os.environ.get("DOCKER_HOST") or os.getuid() != 0 or not sys.platform.startswith("linux"):
            raise
        if shutil.which("docker") and not isinstance(failure, Absent):
            raise
    done = "started"
    if not shutil.which("dockerd"):
        say("installing docker.io from the distribution's packages")
        install("docker.io")
        done = "installed and started"
    if not shutil.which("docker"):
        install("docker-cli")  # newer releases ship the client on its own
    say("starting dockerd")
    start()
    return f"Docker {look()['Version']}, {done}"


def install(*packages: str) -> None:
    """Install Debian packages; we must be root on Debian or Ubuntu.

    Raises:
        Failure: this is another system, we are not root, or apt-get failed.
    """
    if not shutil.which("apt-get") or os.getuid() != 0:
        raise Failure(
            f"{' and '.join(packages)} must be installed, and that needs root on Debian or Ubuntu.",
            f"Install {' '.join(packages)} with this system's package manager, then try again.",
        )
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with console.only_one(CACHE / "apt.lock", "apt-get"):
        lists = Path("/var/lib/apt/lists")
        if not any(lists.glob("*_Packages*")):
            run(["apt-get", "update"], env=environment)
        command = ["apt-get", "install", "-y", "-o", "DPkg::Lock::Timeout=120", *packages]
        if run(command, env=environment, check=False).returncode:
            run(["dpkg", "--configure", "-a"], env=environment)  # an earlier installation was interrupted
            run(["apt-get", "update"], env=environment)  # the lists may be older than the archive
            run(command, env=environment, remedy="Mend what apt-get names, then try again.")


def start() -> None:
    """Start the installed Docker engine: by the init system where there is one, else detached, with its own log.

    Raises:
        Failure: it does not answer within 60 s; the remedy names its log.
    """
    if Path("/run/systemd/system").is_dir():
        run(["systemctl", "start", "docker"], remedy="Read `journalctl -u docker`.")
    else:
        _start_detached()
    if not until(_answers, 60):
        last = LOG.read_text(errors="replace").splitlines()[-1:] if LOG.exists() else ["it wrote nothing"]
        raise Failure(f"dockerd did not come up: {' '.join(last)}", f"Read {LOG}.")


def _answers() -> dict | None:
    """What `look` returns, once the engine answers; any other trouble with it is raised."""
    try:
        return look()
    except (Absent, Silent):
        return None


def _start_detached() -> None:
    """Start dockerd in a session of its own, holding none of our pipes open."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    command = ["dockerd"]
    if lacks_capability():
        command += ["--add-runtime", f"workshop={_install_runtime()}", "--default-runtime", "workshop"]
    # After a crash or a reboot, a left-over process number may by now belong to another program.
    for pid_file, program in (
        ("/var/run/docker.pid", "dockerd"),
        ("/var/run/docker/containerd/containerd.pid", "containerd"),
    ):
        with contextlib.suppress(OSError, ValueError):
            name = Path(f"/proc/{int(Path(pid_file).read_text())}/comm")
            if not name.exists() or name.read_text().strip() != program:
                Path(pid_file).unlink()
    with open(LOG, "a") as log:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/")


def lacks_capability() -> bool:
    """Whether this host withholds CAP_SYS_RESOURCE even from root, so that runc needs `restricted_runtime`."""
    status = Path("/proc/self/status")
    bit = restricted_runtime.BITS["CAP_SYS_RESOURCE"]
    return status.exists() and not restricted_runtime.held(status.read_text()) >> bit & 1


def restricts() -> bool:
    """Whether the running engine uses `restricted_runtime` unless told otherwise."""
    return run(["docker", "info", "--format", "{{.DefaultRuntime}}"], timeout=10).stdout.strip() == "workshop"


def _install_runtime() -> Path:
    """Put `restricted_runtime` where the daemon can run it without this clone; returns its path."""
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    target = LOG.parent / "restricted-runtime"
    source = Path(restricted_runtime.__file__).read_text().split("\n", 1)[1]
    target.write_text(f"#!{python} -IS\n{source}")
    target.chmod(0o755)
    return target


def cgroup_version() -> str:
    """The engine's cgroup version, "1" or "2"."""
    return run(["docker", "info", "--format", "{{.CgroupVersion}}"], timeout=10).stdout.strip()
