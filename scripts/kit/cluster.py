"""The cluster: one kind cluster with our label, made, started again, replaced or removed. Nobody else calls kind.

What there is, is asked of the engine and of the API server every time; no record is kept that could be wrong.
"""

import contextlib
import datetime
import json
import os
import re
import shutil
import socket
import string
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kit import CACHE, LABEL, OWNER, ROOT, STATE, engine, images, tools
from kit.console import Failure, only_one, resume_programs, run, until
from kit.images import docker

# A network of our own, so that `down` can remove it: kind's default one may carry other clusters.
NETWORK = f"kind-{OWNER}"

# Where every node sees the same directory, as scripts/kind.yaml says: what a network file system is elsewhere.
SHARED = "/shared"

# Written on every node when the cluster is usable: what was put into it. A cluster without it was left half-made.
MARK = "kubernetes-and-state.images"

READY_SECONDS = 180


def name() -> str:
    """The cluster's name: KIND_CLUSTER_NAME, as for kind itself, or "state"."""
    wanted = os.environ.get("KIND_CLUSTER_NAME") or "state"
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?", wanted):
        raise Failure(
            f"KIND_CLUSTER_NAME={wanted[:80]!r} cannot name a cluster.",
            "Use at most 30 lower-case letters, digits and inner hyphens, beginning with a letter.",
        )
    return wanted


def kubeconfig() -> Path:
    """Where this clone keeps the credentials of the cluster, readable by its user only."""
    return STATE / f"{name()}.kubeconfig"


def context() -> str:
    """The name that kind gives the cluster in a kubeconfig."""
    return f"kind-{name()}"


def kubectl(*arguments, **options) -> subprocess.CompletedProcess:
    """kubectl against our cluster and no other, whatever KUBECONFIG says; the options are those of `console.run`."""
    return run([tools.BIN / "kubectl", "--kubeconfig", kubeconfig(), "--context", context(), *arguments], **options)


def kind(*arguments, **options) -> subprocess.CompletedProcess:
    """kind, in our network, told nothing of the person's kubeconfig."""
    environment = os.environ | {"KIND_EXPERIMENTAL_DOCKER_NETWORK": NETWORK, "KUBECONFIG": str(kubeconfig())}
    environment.pop("KIND_EXPERIMENTAL_PROVIDER", None)
    return run([tools.KIND, *arguments, "--name", name()], env=environment, **options)


# ── What there is ─────────────────────────────────────────────────────────────────────────────────────────────────


def nodes() -> dict[str, str]:
    """The state of each node container of this name: {"state-worker": "running"}.

    Raises:
        Failure: a cluster of this name exists that is not ours.
    """
    shown = docker(
        "ps",
        "--all",
        "--filter",
        f"label=io.x-k8s.kind.cluster={name()}",
        "--format",
        '{{.Names}}\t{{.State}}\t{{.Label "' + LABEL + '"}}',
    ).stdout
    rows = [line.split("\t") for line in shown.splitlines()]
    for container, _, owner in rows:
        if owner != OWNER:
            raise Failure(
                f"A kind cluster named {name()} exists (container {container}), and this workshop did not make it.",
                "Leave it alone and choose another name: KIND_CLUSTER_NAME=state2 scripts/start",
            )
    return {container: state for container, state, _ in sorted(rows)}


def ports() -> dict[str, int]:
    """The published Ingress ports, {"http": 80, "https": 443}; empty where the cluster does not run."""
    shown = docker("port", f"{name()}-control-plane", check=False).stdout
    found = dict(re.findall(r"^(80|443)/tcp -> 127\.0\.0\.1:(\d+)$", shown, re.MULTILINE))
    return {scheme: int(found[port]) for scheme, port in (("http", "80"), ("https", "443")) if port in found}


def _node_objects() -> list[dict] | None:
    """The Node objects of the running cluster; None where its API server does not answer."""
    shown = kubectl("get", "nodes", "--output=json", "--request-timeout=5s", check=False)
    return None if shown.returncode else json.loads(shown.stdout)["items"]


def _wanted(single: bool = False) -> str:
    """The mark of a cluster that holds what this version of the workshop needs: its images, and the Gateway API."""
    return images.workshop_archive().stem + ("" if single else f" {tools.GATEWAY_API.stem}")


def _mark() -> str | None:
    """What the running cluster holds, or None where it is not (yet) usable or does not answer."""
    items = _node_objects() or []
    marks = {item["metadata"]["annotations"].get(MARK) for item in items}
    ready = all(
        any(each["type"] == "Ready" and each["status"] == "True" for each in item["status"]["conditions"])
        for item in items
    )
    return marks.pop() if len(items) == len(nodes()) and len(marks) == 1 and ready else None


def status() -> tuple[str, str]:
    """The cluster in a word (absent, stopped, half-made, usable) and a sentence with what to do."""
    states = nodes()
    if not states:
        return "absent", f"There is no cluster {name()}. Run scripts/cluster up, which makes it."
    if set(states.values()) != {"running"}:
        which = ", ".join(f"{node} is {state}" for node, state in states.items() if state != "running")
        return "stopped", f"The cluster {name()} is stopped ({which}). Run scripts/cluster up, which starts it."
    _write_kubeconfig()
    if _mark() is None:
        return (
            "half-made",
            f"The cluster {name()} does not answer as it should. Run scripts/cluster up, which mends or replaces it.",
        )
    addresses = " and ".join(f"{scheme}://127.0.0.1:{port}" for scheme, port in ports().items())
    what = f"{len(states)} nodes, Ingress at {addresses}" if addresses else "one node, to be thrown away"
    return "usable", f"The cluster {name()} is usable: {what}."


# ── Up ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def up(say=lambda text, done=None: None, single: bool = False) -> str:
    """Have a usable cluster: reuse, start, mend, replace or create it.

    Args:
        say: told what is being done.
        single: one node, without Ingress and Gateway API: a cluster to break and to throw away.

    Returns:
        What was done.

    Raises:
        Failure: it could not be made (nothing of it is left), is foreign, or does not become usable.
    """
    STATE.mkdir(mode=0o700, exist_ok=True)
    STATE.chmod(0o700)
    with only_one(CACHE / f"cluster-{name()}.lock", f"the cluster {name()}"):
        states = nodes()
        if single:
            _refuse_workers(states)
        old = any(map(outdated, states))
        if len(states) == (1 if single else 3) and not old and _resume(states, single, say):
            if _mark() == _wanted(single):
                return f"{name()}, already usable"
            say("loading images")
            _load_images(images.workshop_archive())
            _settle(single, _wanted(single), say)
            return f"{name()}, mended"
        if states:
            say("replacing a cluster that another version made" if old else "replacing a half-made cluster")
            _delete()
        _create(single, say)
        where = ", ".join(f"{scheme} at 127.0.0.1:{port}" for scheme, port in ports().items())
        return f"{name()}, created ({where or 'one node'})"


def _refuse_workers(states: dict[str, str]) -> None:
    """Protect a cluster that somebody learns with from being replaced, or removed, as one to be thrown away.

    Raises:
        Failure: it has workers.
    """
    if set(states) - {f"{name()}-control-plane"}:
        raise Failure(
            f"The cluster {name()} has workers: it is none to be thrown away.",
            f"Give the single node a name of its own, such as KIND_CLUSTER_NAME={name()}-single.",
        )


def _resume(states: dict[str, str], single: bool, say) -> bool:
    """Start the containers of an existing cluster; whether it is one that was once complete."""
    began = datetime.datetime.now(datetime.UTC)
    for node, state in states.items():
        if state != "running":
            say(f"{node} is {state}; starting it")
            docker("unpause" if state == "paused" else "start", node)
    if set(states.values()) == {"running"}:
        _write_kubeconfig()
        if _mark() is not None and _reachable():
            return True
    # The mark is kept in the API server: give it time to come up, watching the containers' own word for it.
    _write_kubeconfig(wait=True)
    items = until(_node_objects, 60) or []
    if len(items) != len(states) or not all(MARK in item["metadata"]["annotations"] for item in items):
        return False
    # A node that was stopped still counts as Ready for a while: believe only what it has said since.
    say("waiting for word from every node")
    started = {node for node, state in states.items() if state != "running"}
    if not until(lambda: started <= _heard_since(began), READY_SECONDS):
        return False
    if not until(_reachable, READY_SECONDS):
        return False
    _settle(single, items[0]["metadata"]["annotations"][MARK], say)
    return True


# What a lesson says of a node that it has taken away (kubectl taint); the node must not keep it when it is back.
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"


def heal(say=lambda text, done=None: None) -> str:
    """Undo what lessons do to nodes: start stopped and paused ones, take off cordons and the out-of-service taint.

    Returns:
        What was done.

    Raises:
        Failure: there is no cluster, or it does not become usable.
    """
    with only_one(CACHE / f"cluster-{name()}.lock", f"the cluster {name()}"):
        states = nodes()
        if not states:
            raise Failure(f"There is no cluster {name()}.", "Run scripts/cluster up, which makes it.")
        if not _resume(states, len(states) == 1, say):
            raise Failure(f"The cluster {name()} cannot be healed.", "Run scripts/cluster up, which replaces it.")
        healed = [f"started {node}" for node, state in states.items() if state != "running"]
        for item in _node_objects() or []:
            node, spec = item["metadata"]["name"], item["spec"]
            if any(taint["key"] == OUT_OF_SERVICE for taint in spec.get("taints", [])):
                kubectl("taint", "nodes", node, f"{OUT_OF_SERVICE}-")
                healed.append(f"put {node} back into service")
            if spec.get("unschedulable"):
                kubectl("uncordon", node)
                healed.append(f"uncordoned {node}")
    return f"{name()}, {', '.join(healed) or 'nothing to heal'}"


def outdated(node: str) -> bool:
    """Whether a version of the workshop made this node that had another node image, or no shared directory."""
    made_of = f'{{{{index .Config.Labels "{images.FINGERPRINT}"}}}}'
    shown = docker("inspect", "--format", made_of + "{{range .Mounts}} {{.Destination}}{{end}}", node).stdout
    return not {images.node_mark(), SHARED} <= set(shown.split())


def _heard_since(began: datetime.datetime) -> set[str]:
    """The nodes that have renewed their lease since then."""
    shown = kubectl(
        "get", "leases", "--namespace=kube-node-lease", "--output=json", "--request-timeout=5s", check=False
    )
    items = json.loads(shown.stdout)["items"] if shown.returncode == 0 else []
    return {
        item["metadata"]["name"] for item in items if datetime.datetime.fromisoformat(item["spec"]["renewTime"]) > began
    }


def _reachable() -> bool:
    """Whether each node is where the API server looks for it, and its kubelet answers: logs and exec need that.

    Containers that the engine itself started again may have changed addresses, and nodes tell theirs a little later.
    """
    items = _node_objects()
    for item in items or []:
        node = item["metadata"]["name"]
        known = [each["address"] for each in item["status"]["addresses"] if each["type"] == "InternalIP"]
        healthy = kubectl("get", f"--raw=/api/v1/nodes/{node}/proxy/healthz", "--request-timeout=5s", check=False)
        if known[:1] != [address(node)] or healthy.stdout != "ok":
            return False
    return bool(items)


def address(node: str) -> str:
    """The address that the engine has given to a node's container; "" if it has none, as one that is stopped."""
    networks = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
    return docker("inspect", "--format", networks, node).stdout.strip().partition(" ")[0]


def _write_kubeconfig(wait: bool = False) -> None:
    """Fetch the cluster's credentials from its control-plane node into this clone, unless they are here already.

    Raises:
        Failure: the address in them is not on the loopback interface.
    """
    path = kubeconfig()
    port = docker("port", f"{name()}-control-plane", "6443/tcp", check=False).stdout.strip()
    if path.exists() and port and f"https://{port}" in path.read_text():
        return
    STATE.mkdir(mode=0o700, exist_ok=True)

    def fetch() -> str:
        return kind("get", "kubeconfig", check=False).stdout

    text = until(fetch, 30) if wait else fetch()
    if not text:
        return
    if not re.search(r"server: https://127\.0\.0\.1:\d+$", text, re.MULTILINE):
        raise Failure(
            f"The API server of {name()} is not published on 127.0.0.1.",
            "Run scripts/cluster down and scripts/cluster up.",
        )
    _write_private(path, text)


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its user may read, never through a link that somebody planted."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(text)
    part.replace(path)


def _create(single: bool, say) -> None:
    """Create the cluster and make it usable; on any failure, or Ctrl-C, remove what there is of it."""
    if images.label(images.own_node(), LABEL) != OWNER:
        raise Failure(
            f"The node image {images.own_node()} is not in the engine.",
            "Run scripts/setup: it fetches or builds what is missing.",
        )
    _gateway_api()  # rather now than when there is a cluster to be removed again
    _make_network()
    try:
        if single:
            say("kind create cluster (one node)")
            _kind_create(None)
        else:
            _create_with_ports(say)
        _verify_patches()
        _settle(single, _wanted(single), say)
    except BaseException:
        resume_programs()
        _delete()
        raise


def _create_with_ports(say) -> None:
    """Run `kind create cluster` with a free pair of Ingress ports."""
    for attempt in range(3):
        chosen = choose_ports(attempt)
        say(f"kind create cluster (Ingress ports {chosen[0]} and {chosen[1]})")
        try:
            return _kind_create(chosen)
        except Failure as failure:
            # Somebody took the port between our look and kind's use of it: look again.
            if "port is already allocated" not in failure.cause and "address already in use" not in failure.cause:
                raise
            if attempt == 2 or "WORKSHOP_HTTP_PORT" in os.environ or "WORKSHOP_HTTPS_PORT" in os.environ:
                raise
            _delete(keep_network=True)


def _make_network() -> None:
    """Create our network, with our label; kind then uses it as it is."""
    if docker("network", "inspect", NETWORK, check=False).returncode:
        docker(
            "network",
            "create",
            "--driver=bridge",
            "--opt",
            "com.docker.network.bridge.enable_ip_masquerade=true",
            "--label",
            f"{LABEL}={OWNER}",
            NETWORK,
        )


def _volume() -> str:
    """The name of the engine's volume that every node of this cluster sees as /shared."""
    return f"{NETWORK}-{name()}"


def _make_volume() -> str:
    """Have that volume, with our label; returns where the engine keeps it, since kind mounts paths only."""
    docker("volume", "create", "--label", f"{LABEL}={OWNER}", _volume())
    return docker("volume", "inspect", "--format", "{{.Mountpoint}}", _volume()).stdout.strip()


def _kind_create(chosen: tuple[int, int] | None, *options: str) -> None:
    """Run `kind create cluster` with scripts/kind.yaml, filled in for this host; one node if no ports are chosen."""
    filled = kind_config(chosen, engine.cgroup_version(), _make_volume())
    lock = kubeconfig().with_name(kubeconfig().name + ".lock")
    if lock.exists():  # kind's own, from a run that was killed; we hold the lock that counts
        lock.unlink()
        print(f"Removed {lock.name}, left behind by a run that was killed.", flush=True)
    kind(
        "create",
        "cluster",
        "--image",
        images.own_node(),
        "--config",
        "-",
        "--kubeconfig",
        kubeconfig(),
        "--retain",
        *options,
        input=filled,
        remedy="Read the lines above; scripts/doctor looks for the usual causes.",
    )


def bare() -> None:
    """Only what kind does: `kind create cluster --wait` with our image and settings. For scripts/bench."""
    _make_network()
    _kind_create(choose_ports(), "--wait=120s")


def kind_config(chosen: tuple[int, int] | None, cgroup_version: str, shared: str) -> str:
    """scripts/kind.yaml with its names filled in.

    Args:
        chosen: the host's ports for the Ingress, without and with TLS; None for a single node, which publishes none.
        cgroup_version: of the engine's host: "1" needs a setting of its own.
        shared: the directory of that host which all nodes share.
    """
    import yaml  # here, because the doctor runs where it is not installed

    http, https = chosen or (0, 0)
    template = string.Template((ROOT / "scripts/kind.yaml").read_text())
    cgroup = "failCgroupV1: false" if cgroup_version == "1" else ""
    config = yaml.safe_load(template.substitute(http=http, https=https, cgroup=cgroup, shared=shared))
    if not chosen:
        del config["nodes"][1:], config["nodes"][0]["extraPortMappings"]
    return yaml.safe_dump(config)


def _load_into(node: str, archive: Path) -> None:
    """Import the archive of workshop images into one node's containerd.

    As `kind load image-archive` does, but with `--local`: 1.9 s instead of 4.8 s for 320 MB.
    """
    with open(archive, "rb") as file:
        docker(
            "exec",
            "--interactive",
            node,
            "ctr",
            "--namespace=k8s.io",
            "images",
            "import",
            "--local",
            "--all-platforms",
            "--digests",
            "-",
            stdin=file,
            remedy=f"Remove {archive}, run scripts/setup, and try again.",
        )


def _load_images(archive: Path) -> None:
    """Load the archive into every node of a running cluster: all at once take 50 s where one after another took 70."""
    if not archive.exists():
        raise Failure("The workshop's images are not in the cache.", "Run scripts/setup: it builds them.")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda node: _load_into(node, archive), nodes()))


# What the kubelet must have taken from kind.yaml: kind passes over a patch that matches nothing without a word.
EXPECTED_KUBELET = {"syncFrequency": "5s", "nodeStatusUpdateFrequency": "4s"}


def _verify_patches() -> None:
    """Compare what runs with what kind.yaml asked for.

    Raises:
        Failure: a setting did not arrive.
    """
    shown = kubectl("get", "--raw", f"/api/v1/nodes/{name()}-control-plane/proxy/configz").stdout
    kubelet = json.loads(shown)["kubeletconfig"]
    found = {key: kubelet.get(key) for key in EXPECTED_KUBELET}
    crash = kubelet.get("crashLoopBackOff", {}).get("maxContainerRestartPeriod")
    flags = kubectl(
        "get",
        "pods",
        "--namespace=kube-system",
        "--selector=tier=control-plane",
        "--output=jsonpath={.items[*].spec.containers[*].command}",
    ).stdout
    missing = [
        flag
        for flag in ("node-monitor-grace-period=20s", "default-unreachable-toleration-seconds=10")
        if flag not in flags
    ]
    if found != EXPECTED_KUBELET or crash != "5s" or missing:
        raise Failure(
            f"kind did not pass on the settings of scripts/kind.yaml: {found}, {crash}, {missing}.",
            f"Check that kind is {tools.KIND_VERSION} and that its patches still match.",
        )


def _settle(single: bool, mark: str, say) -> None:
    """Wait until nodes, DNS, storage and, unless it is a single node, Ingress work; then mark the cluster usable.

    Raises:
        Failure: something is not ready in time; its events say why.
    """
    if not single:
        _add_ingress(say)
    say("waiting until everything is ready")
    wait_for("nodes", "Ready")
    for namespace in ("kube-system", "local-path-storage", *([] if single else ["ingress"])):
        wait_for("deployments", "Available", namespace)
    kubectl("annotate", "nodes", "--all", "--overwrite", f"{MARK}={mark}")


def _add_ingress(say) -> None:
    """Have the kinds of the Gateway API, and Traefik."""
    # While the nodes are still getting ready, and before Traefik, which asks for these kinds when it starts.
    say("adding the Gateway API")
    kubectl("apply", "--server-side", "--force-conflicts", "--filename", _gateway_api())
    first = f"{tools.GATEWAY_API_KINDS[0]}.gateway.networking.k8s.io"  # Traefik's manifest has an object of this kind
    kubectl("wait", f"customresourcedefinition/{first}", "--for=condition=Established", "--timeout=60s")
    say("starting Traefik")
    kubectl("apply", "--server-side", "--force-conflicts", "--filename", ROOT / "images/traefik/traefik.yaml")


def _gateway_api() -> Path:
    """The manifest with the kinds of the Gateway API."""
    if not tools.GATEWAY_API.exists():
        raise Failure("The Gateway API is not in the cache.", "Run scripts/setup: it fetches what is missing.")
    return tools.GATEWAY_API


# What a program says that may not watch one file more; nearly all of a node's programs watch files.
NO_MORE_WATCHES = "too many open files"
MORE_WATCHES = "Remove clusters that you do not need, or allow more: sudo sysctl fs.inotify.max_user_instances=512"


def wait_for(kind: str, condition: str, namespace: str = "kube-system") -> None:
    """`kubectl wait` for all objects of a kind, with a deadline.

    Args:
        kind: as kubectl names it, such as "nodes".
        condition: that all of them must have, such as "Ready".
        namespace: where they are; that of the system for what is in none.

    Raises:
        Failure: it tells what is not ready, the latest warnings, and what containers said that keep ending.
    """
    what = [kind, "--all", f"--namespace={namespace}", f"--for=condition={condition}", f"--timeout={READY_SECONDS}s"]
    waited = kubectl("wait", *what, check=False)
    if waited.returncode:
        events = kubectl(
            "get",
            "events",
            "--all-namespaces",
            "--field-selector=type=Warning",
            "--sort-by=.lastTimestamp",
            "--output=custom-columns=:.involvedObject.name,:.message",
            "--no-headers",
            check=False,
        ).stdout.splitlines()[-3:]
        last = waited.stderr.strip().splitlines()[-1:]
        cause = " | ".join([*last, *events, *_last_words(namespace)])
        remedy = "Run scripts/cluster down, then scripts/cluster up; scripts/doctor looks for the usual causes."
        raise Failure(
            f"{kind} not {condition} after {READY_SECONDS} s: {cause}",
            MORE_WATCHES if NO_MORE_WATCHES in cause else remedy,
        )


def _last_words(namespace: str) -> list[str]:
    """What each container said last that has ended, been started again and is not ready."""
    shown = kubectl("get", "pods", f"--namespace={namespace}", "--output=json", check=False).stdout
    words = []
    for pod in json.loads(shown or "{}").get("items", []):
        for status in pod["status"].get("containerStatuses", []):
            if status["restartCount"] and not status["ready"]:
                ask = ["logs", pod["metadata"]["name"], f"--container={status['name']}", f"--namespace={namespace}"]
                ask += ["--tail=1", "--request-timeout=5s"]
                # Of the one that ended, while it waits to be started again; of the one before if it runs in silence.
                said = kubectl(*ask, check=False).stdout or kubectl(*ask, "--previous", check=False).stdout
                words.append(f"{status['name']} ended and said: {said.strip()}")
    return words


# ── Ports ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def choose_ports(attempt: int = 0) -> tuple[int, int]:
    """The loopback ports for HTTP and HTTPS: what WORKSHOP_HTTP_PORT and WORKSHOP_HTTPS_PORT say, else 80 and 443 if
    both are free, else the next free pair.

    Raises:
        Failure: a port that was asked for by name is taken; it says by whom.
    """
    if "WORKSHOP_HTTP_PORT" in os.environ or "WORKSHOP_HTTPS_PORT" in os.environ:
        return _asked_port("WORKSHOP_HTTP_PORT", 80), _asked_port("WORKSHOP_HTTPS_PORT", 443)
    pairs = [(80, 443)] + [(8081 + number, 8444 + number) for number in range(100)]
    free = [pair for pair in pairs if not any(taken(port) for port in pair)]
    if len(free) <= attempt:
        raise Failure("No pair of free loopback ports was found for the Ingress.", "Stop what uses ports 8081 to 8544.")
    return free[attempt]


def _asked_port(variable: str, default: int) -> int:
    """The free port that an environment variable names."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or not 0 < int(text) < 65536 or int(text) == 8080:
        raise Failure(
            f"{variable}={text[:40]!r} is no port for the Ingress.", "Use a number from 1 to 65535, but not 8080."
        )
    if taken(int(text)):
        raise Failure(
            f"Port {text} on 127.0.0.1 is taken by {port_owner(int(text))}.",
            f"Stop it, or set {variable} to another port.",
        )
    return int(text)


def taken(port: int) -> bool:
    """Whether something listens on a loopback TCP port, or holds it on all addresses."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return False
        except PermissionError:  # a low port and no root; the engine may publish it all the same
            pass
        except OSError:
            return True
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def port_owner(port: int) -> str:
    """The program that listens on a TCP port, as far as this user may see it."""
    inodes = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        rows = [line.split() for line in table.read_text().splitlines()[1:]] if table.exists() else []
        inodes |= {row[9] for row in rows if row[3] == "0A" and int(row[1].rsplit(":")[-1], 16) == port}
    sockets = {f"socket:[{inode}]" for inode in inodes}
    for link in Path("/proc").glob("[0-9]*/fd/*") if sockets else ():
        with contextlib.suppress(OSError):  # another user's, or gone since it was listed
            if os.readlink(link) in sockets:
                process = link.parents[1]
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return "another program"


# ── Down ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def down(single: bool = False) -> str:
    """Remove our cluster, its volumes, its kubeconfig, and our network if nothing else uses it.

    Args:
        single: only if it is one to be thrown away.

    Returns:
        What was done; there being nothing to remove is a success.

    Raises:
        Failure: the cluster of this name is not ours, or not to be thrown away.
    """
    with only_one(CACHE / f"cluster-{name()}.lock", f"the cluster {name()}"):
        found = nodes()
        if single:
            _refuse_workers(found)
        _delete()
    return f"The cluster {name()} is removed." if found else f"There is no cluster {name()}."


def remove(*containers: str) -> None:
    """Remove containers, running or not, with their volumes.

    A node freezes its own containers for a moment whenever it changes their limits. One that is killed just then leaves
    them frozen, and with cgroup v1 what is frozen cannot die: then it is thawed first, where we may.
    """
    if docker("rm", "--force", "--volumes", *containers, check=False).returncode:
        numbers = docker("inspect", "--format={{.Id}}", *containers, check=False).stdout.split()
        for state in Path("/sys/fs/cgroup/freezer").rglob("freezer.state"):
            with contextlib.suppress(OSError):
                if any(number in str(state) for number in numbers) and state.read_text() == "FROZEN\n":
                    state.write_text("THAWED")
        docker("rm", "--force", "--volumes", *containers, remedy="Restart the container engine, then try again.")


def _delete(keep_network: bool = False) -> None:
    """Delete whatever there is of our cluster. `nodes` refuses a foreign one."""
    if containers := nodes():
        remove(*containers)
    for file in STATE.glob(f"{name()}.kubeconfig*"):
        file.unlink()
    shutil.rmtree(STATE / "notebooks" / name(), ignore_errors=True)
    if docker(
        "volume", "ls", "--quiet", "--filter", f"name=^{_volume()}$", "--filter", f"label={LABEL}={OWNER}"
    ).stdout:
        docker("volume", "rm", _volume())
    if (
        not keep_network
        and docker(
            "network", "ls", "--quiet", "--filter", f"name=^{NETWORK}$", "--filter", f"label={LABEL}={OWNER}"
        ).stdout
        # The engine would remove it under a cluster of ours that is stopped, and that could not start again.
        and not docker("ps", "--all", "--quiet", "--filter", f"network={NETWORK}").stdout
    ):
        docker("network", "rm", NETWORK, check=False)  # refused if another cluster has joined it just now
