"""The images: Debian, the kind node, and the workshop's own. Each is taken from the first source that has it.

The sources, in order: the engine, the user's cache, a bundle somebody handed over (WORKSHOP_BUNDLE), a registry,
and last our own build from package registries alone. How a node is built is told in images/node/ and CONTRIBUTING.md.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from kit import CACHE, LABEL, OWNER, ROOT, engine, tools
from kit.console import Failure, run

IMAGES = ROOT / "images"
LIST = tomllib.loads((IMAGES / "images.toml").read_text())
FINGERPRINT = "kubernetes-and-state.fingerprint"
ARCHIVES = CACHE / "images"


def fingerprint(*parts) -> str:
    """Twelve hexadecimal digits that change with the parts: folders (every file in them) and plain values."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            for path in sorted(path for path in part.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
                digest.update(f"{path.relative_to(part)} {path.stat().st_mode & 0o100}\n".encode() + path.read_bytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()[:12]


def docker(*arguments, **options):
    """Run the Docker client; the options are those of `console.run`."""
    return run(["docker", *arguments], **options)


def label(tag: str, name: str) -> str | None:
    """The value of a label of an image in the engine; None where there is no such image, "" without the label."""
    found = docker("image", "inspect", tag, "--format", "{{json .Config.Labels}}", check=False)
    return None if found.returncode else (json.loads(found.stdout) or {}).get(name, "")


def build(context: Path, tag: str, mark: str, *arguments) -> None:
    """`docker build`, labelled with the fingerprint and our label. Works with and without the BuildKit plug-in."""
    kit = docker("buildx", "version", check=False).returncode == 0
    docker(
        "build",
        "--quiet",
        "--tag",
        tag,
        "--label",
        f"{FINGERPRINT}={mark}",
        "--label",
        f"{LABEL}={OWNER}",
        "--build-arg",
        f"OWNER={OWNER}",
        *arguments,
        context,
        env=os.environ | {"DOCKER_BUILDKIT": "1" if kit else "0"},
    )


def load(archive: Path) -> None:
    """Load a saved archive into the engine; a damaged one is removed, so that the next run makes it again."""
    try:
        docker("load", "--quiet", "--input", archive)
    except Failure as failure:
        if archive.parent == ARCHIVES:
            archive.unlink()
        raise Failure(f"{archive} cannot be loaded: {failure.cause}", "Run the same command again.") from None


def save(archive: Path, *tags: str) -> None:
    """Save images from the engine into one archive, whole or not at all, and drop older ones of the same name."""
    ARCHIVES.mkdir(parents=True, exist_ok=True)
    part = archive.with_suffix(".part")
    docker("save", "--output", part, *tags)
    part.replace(archive)
    for older in ARCHIVES.glob(f"{archive.name.rsplit('-', 1)[0]}-*.tar"):
        if older != archive:
            older.unlink()


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder in the cache for one build, gone afterwards."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=CACHE) as folder:
        yield Path(folder)


# ── Debian ────────────────────────────────────────────────────────────────────────────────────────────────────────


def ensure_debian(say=lambda text: None) -> str:
    """Have the Debian base image in the engine; returns where it came from."""
    tag, archive = LIST["debian"]["tag"], ARCHIVES / "debian-trixie.tar"
    if label(tag, LABEL) is not None:
        return "in the engine"
    if archive.exists():
        load(archive)
        return "from the cache"
    say("pulling")
    if docker("pull", "--quiet", tag, check=False).returncode == 0:
        return "pulled"
    say("debootstrap")
    if not shutil.which("debootstrap"):
        engine.install("debootstrap")
    with workplace() as place:
        root = place / "root"
        run(
            ["debootstrap", "--variant=minbase", "--include=ca-certificates", "trixie", root, *debian_mirror()],
            remedy="Read the lines above; debootstrap needs root and a Debian mirror.",
        )
        for folder in (
            "usr/share/doc",
            "usr/share/man",
            "usr/share/locale",
            "usr/share/info",
            "var/cache/apt",
            "var/lib/apt/lists",
            "var/log",
        ):
            shutil.rmtree(root / folder)
            (root / folder).mkdir()
        run(["tar", "--create", "--numeric-owner", "--directory", root, "--file", place / "root.tar", "."])
        change = f'LABEL {LABEL}="{OWNER}"'
        docker("import", "--change", change, "--change", 'CMD ["bash"]', place / "root.tar", tag)
    save(archive, tag)
    return "made with debootstrap"


def debian_mirror() -> list[str]:
    """The mirror this machine's apt uses, on Debian; nothing elsewhere, so that debootstrap takes its own."""
    shown = run(["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"], check=False)
    addresses = [line.split()[1] for line in shown.stdout.splitlines() if line.startswith("Debian ")]
    return [address for address in addresses if "security" not in address][:1]


# ── The node ──────────────────────────────────────────────────────────────────────────────────────────────────────

NODE = LIST["node"]


def node_mark() -> str:
    """The fingerprint of the node image we would build."""
    return fingerprint(IMAGES / "node", NODE["version"], tools.KIND_VERSION, LIST["debian"])


def node_source() -> str | None:
    """The tag of a node image in the engine: our own build or the pulled one; None if neither is there."""
    if label(NODE["tag"], FINGERPRINT) == node_mark():
        return NODE["tag"]
    return NODE["pull"] if label(NODE["pull"], LABEL) is not None else None


def node_archive() -> Path:
    """Where the node image is kept in the cache."""
    return ARCHIVES / f"node-{node_mark()}.tar"


def fetch_node(say=lambda text: None) -> str | None:
    """Have a node image in the engine without building one; returns where it came from, or None."""
    if tag := node_source():
        return f"{tag.split('@')[0]}, in the engine"
    if node_archive().exists():
        say("loading from the cache")
        load(node_archive())
        return f"{NODE['tag']}, from the cache"
    if bundle := os.environ.get("WORKSHOP_BUNDLE"):
        say(f"loading {bundle}")
        load(Path(bundle))
        if not node_source():
            raise Failure(
                f"{bundle} holds no node image for this version of the workshop.",
                f"Make one there with `docker save {NODE['tag']}`, or unset WORKSHOP_BUNDLE.",
            )
        return f"{NODE['tag']}, from {bundle}"
    say("pulling")
    if docker("pull", "--quiet", NODE["pull"], check=False).returncode == 0:
        return f"{NODE['pull'].split('@')[0]}, pulled"
    return None


def compile_node(say, programs: Path) -> None:
    """Compile what a node runs, for the engine's architecture, into the folder `programs`.

    kube (all of Kubernetes, etcd and CoreDNS in one), containerd with its shim and ctr, four CNI plug-ins, the storage
    provisioner and pause; about eight minutes on two cores the first time, then a minute.
    """
    version = NODE["version"]
    stamps = {
        "k8s.io/component-base/version.gitVersion": version,
        "k8s.io/component-base/version.gitMajor": "1",
        "k8s.io/component-base/version.gitMinor": version.split(".")[1],
        "k8s.io/client-go/pkg/version.gitVersion": version,
    }
    versions = " ".join(f"-X {name}={value}" for name, value in stamps.items())
    plugins = [
        f"github.com/containernetworking/plugins/plugins/{name}"
        for name in ("main/ptp", "main/loopback", "ipam/host-local", "meta/portmap")
    ]
    node = IMAGES / "node"
    _compile(say, "Kubernetes", node, programs, "./kube", "./pause", *plugins, linker=versions)
    # The provisioner has a call of its own: it imports a logger under a name that differs from ours in case only.
    _compile(say, "the provisioner", node, programs, "github.com/rancher/local-path-provisioner")
    _compile(say, "containerd", node / "containerd", programs, "tool")


def _compile(say, what: str, folder: Path, programs: Path, *packages: str, linker: str = "") -> None:
    """`go build`, for the engine's architecture, into the folder `programs`.

    Args:
        what: what is built, for people.
        folder: where its go.mod is; the package "tool" stands for all the tools that it names.
        packages: what to build there.
        linker: flags for the linker, beside those that leave out what a debugger needs.
    """
    go, environment = tools.ensure_go(say), tools.go_environment() | {"GOOS": "linux", "GOARCH": engine.look()["Arch"]}
    say(f"fetching the modules of {what}", 0)
    listed = run(
        [go, "list", "-deps", *packages],
        cwd=folder,
        env=environment,
        remedy="Check that Go reaches its module proxy (go env GOPROXY), then try again.",
    )
    total, compiled = len(listed.stdout.splitlines()), 0

    def count(line: str) -> None:
        nonlocal compiled
        compiled += not line.startswith("go: ")
        say(f"compiling {what}: {compiled} of {total} packages at most", compiled / total)

    programs.mkdir(exist_ok=True)
    # Debug tables nobody reads here would cost a tenth of the time.
    run(
        [
            go,
            "build",
            "-v",
            "-trimpath",
            "-gcflags=all=-dwarf=false",
            "-tags=no_aufs no_zfs no_btrfs no_devmapper",
            f"-ldflags=-s -w {linker}",
            "-o",
            f"{programs}/",
            *packages,
        ],
        cwd=folder,
        env=environment,
        on_line=count,
    )


def build_node(say, programs: Path) -> str:
    """Make the node image from compiled programs and the Debian base; returns what was done."""
    version, system = NODE["version"], f"workshop/system:{NODE['version']}"
    with workplace() as place:
        shutil.copytree(IMAGES / "node", place, dirs_exist_ok=True)
        (place / "bin").mkdir()
        for program in programs.iterdir():
            os.link(program, place / "bin" / program.name)
        for manifest in (place / "files/manifests").iterdir():
            manifest.write_text(manifest.read_text().replace("workshop/system:VERSION", system))
        kind = tools.go_module("sigs.k8s.io/kind", tools.KIND_VERSION)
        # The module cache is read-only; copies must not be.
        shutil.copytree(kind / "images/base/files", place / "files/kind", copy_function=shutil.copyfile)
        say("the image of what runs in Pods")
        base, mark = ("--build-arg", f"BASE={LIST['debian']['tag']}"), node_mark()
        tags = [f"workshop/system:{name}" for name in (version, "coredns", "pause")]
        for name, tag in zip(("kube", "coredns", "pause"), tags, strict=True):
            build(place, tag, mark, "--file", place / "Dockerfile.system", "--target", name, *base)
        # kubeadm itself says which images it wants; ours answer to those names inside the nodes only.
        wanted = docker(
            "run", "--rm", system, "kubeadm", "config", "images", "list", f"--kubernetes-version={version}"
        ).stdout.split()
        names = {image: next((tag for tag in tags if tag.rsplit(":")[1] in image), system) for image in wanted}
        docker("save", "--output", place / "system-images.tar", *tags)
        say("the node image")
        build(
            place,
            NODE["tag"],
            mark,
            *base,
            "--build-arg",
            f"VERSION={version}",
            "--build-arg",
            f"PAUSE={next(image for image in wanted if '/pause:' in image)}",
            "--build-arg",
            "NAMES=" + " ".join(f"{image}={tag}" for image, tag in names.items()),
        )
    say("saving it in the cache")
    save(node_archive(), NODE["tag"])
    return f"{NODE['tag']}, built from package registries"


# ── The workshop's own ────────────────────────────────────────────────────────────────────────────────────────────

WORKSHOP = LIST["workshop"]


def workshop_marks() -> dict[str, str]:
    """The fingerprint of each workshop image, by name."""
    return {name: fingerprint(IMAGES / name, image, IMAGES / "base") for name, image in WORKSHOP.items()}


def workshop_archive() -> Path:
    """Where all workshop images are kept in the cache, in one archive: their common layers are stored once."""
    return ARCHIVES / f"workshop-{fingerprint(workshop_marks())}.tar"


def build_workshop(say=lambda text, done=None: None, compiled: bool = True) -> str:
    """Build the workshop images that are missing; returns what was done.

    Args:
        compiled: also those whose programs are compiled here, for which the compiler must be free.
    """
    if workshop_archive().exists():
        return f"{len(WORKSHOP)}, in the cache"
    built = []
    for position, (name, mark) in enumerate(workshop_marks().items()):
        image = WORKSHOP[name]
        if label(image["tag"], FINGERPRINT) == mark or ((IMAGES / name / "go.mod").exists() and not compiled):
            continue
        say(image["tag"], position / len(WORKSHOP))
        with workplace() as place:
            shutil.copytree(IMAGES / name, place, dirs_exist_ok=True)
            if "wheels" in image:
                _unpack_wheels(image["wheels"], place / "wheels")
            if (place / "go.mod").exists():
                _compile(say, name, place, place / "bin", "tool")
            build(place, image["tag"], mark)
        built.append(name)
    return f"built {', '.join(built)}" if built else "in the engine"


def ensure_workshop(say=lambda text, done=None: None) -> str:
    """Have the workshop images in one archive, ready to be loaded into nodes; returns what was done."""
    done = build_workshop(say)
    if not workshop_archive().exists():
        say("saving them in the cache", 1)
        save(workshop_archive(), *(image["tag"] for image in WORKSHOP.values()))
    return done


def _unpack_wheels(requirements: list[str], folder: Path) -> None:
    """Put wheels and what they need into a folder, for the engine's architecture and Debian trixie's Python."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}[engine.look()["Arch"]]
    platforms = [f"--platform={name}_{machine}" for name in ("manylinux_2_28", "manylinux2014")]
    chosen = ["--only-binary=:all:", "--python-version=3.13", "--no-compile", *platforms]
    tools.pip_install("--target", folder, *chosen, *requirements)


# ── The node of our clusters ──────────────────────────────────────────────────────────────────────────────────────────


def ensure_own_node(say=lambda text: None) -> str:
    """Have the node image of our clusters in the engine: the kind node with the workshop's images and our label.

    The label passes to every container made from it, so that even a half-made cluster is known as ours. The images are
    in its store because loading them into three running nodes takes longer, and slows down what starts beside it.
    """
    if label(own_node(), LABEL) == OWNER:
        return "in the engine"
    if node_source() is None:
        raise Failure(
            f"The node image {NODE['tag']} is not in the engine.", "Run scripts/setup: it fetches or builds it."
        )
    with workplace() as place:
        shutil.copytree(IMAGES / "node", place, dirs_exist_ok=True)
        os.link(workshop_archive(), place / "workshop-images.tar")
        build(
            place,
            own_node(),
            node_mark(),
            "--file",
            place / "Dockerfile.workshop",
            "--build-arg",
            f"NODE={node_source()}",
        )
    # What all these builds replaced and went through, where it carries our label: not before the last of them is done,
    # because the stages of one that is under way look the same.
    docker("image", "prune", "--force", "--filter", f"label={LABEL}={OWNER}")
    return f"{own_node()}, made"


def own_node() -> str:
    """The tag of the node image of our clusters; changes with everything in it."""
    return f"workshop/node-of-{OWNER}:{fingerprint(node_source(), node_mark(), workshop_marks())}"
