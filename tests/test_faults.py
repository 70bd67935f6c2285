"""The commands under faults: each with its real cause, on a cluster of their own named "faults".

They run in the order written: the cluster is interrupted, killed, made, hurt, healed and removed. A row's number is the
one in the project's list of faults (CONTRIBUTING.md).
"""

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest
from kit import LABEL, OWNER, ROOT, STATE, cluster, console, doctor, images, lessons, tools
from kit.console import Failure, run
from kit.images import docker
from nbclient.exceptions import DeadKernelError

pytestmark = pytest.mark.cluster

NAME = "faults"
SINGLE = f"{NAME}-06"  # what lesson 06 would throw away
SCRIPTS = ROOT / "scripts"


@pytest.fixture(autouse=True)
def named_faults(monkeypatch):
    """Every command of this module, in this process or another, means the cluster named faults."""
    monkeypatch.setenv("KIND_CLUSTER_NAME", NAME)


@pytest.fixture(scope="module", autouse=True)
def removed_at_the_end():
    """Whatever happens, the clusters of this module go."""
    with pytest.MonkeyPatch.context() as patch:

        def down():
            for name in (SINGLE, NAME):
                patch.setenv("KIND_CLUSTER_NAME", name)
                cluster.down()

        down()
        yield
        down()


@pytest.fixture(scope="module", autouse=True)
def room_for_three_clusters():
    """Beside the session's cluster this module has two: 144 inotify instances, where Linux gives a user 128."""
    limit = doctor.INOTIFY
    before = limit.read_text() if os.access(limit, os.W_OK) else "256"
    if int(before) < 256:
        limit.write_text("256")
    yield
    if int(before) < 256:
        limit.write_text(before)


def start(*command, env=(), **options) -> subprocess.Popen:
    """Start one of our scripts as a person would, in a terminal of its own."""
    return subprocess.Popen(
        [str(SCRIPTS / command[0]), *command[1:]],
        env=os.environ | dict(env),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        **options,
    )


def outcome(*command, env=()) -> tuple[int, str]:
    """Run one of our scripts to its end; returns its exit status and all it printed."""
    process = start(*command, env=env)
    try:
        output = process.communicate(timeout=240)[0]
    finally:
        process.kill()
    return process.returncode, output


def assert_one_sentence(output: str) -> None:
    """A failure is told by a cause and a remedy, without a traceback."""
    assert "Traceback" not in output and output.count("✗") == 1 and output.count("  → ") == 1, output


def ours() -> dict[str, str]:
    """Everything in the engine that carries our label or belongs to the cluster named faults."""
    label = f"label={LABEL}={OWNER}"
    return {
        "containers": docker("ps", "-aq", "--filter", f"label=io.x-k8s.kind.cluster={NAME}").stdout,
        "volumes": docker("volume", "ls", "-q", "--filter", label, "--filter", f"name=-{NAME}$").stdout,
        "networks": docker("network", "ls", "-q", "--filter", label).stdout if not other_clusters() else "",
    }


def other_clusters() -> bool:
    """Whether another cluster of this user runs, and so keeps the network in use."""
    shown = docker(
        "ps", "-a", "--filter", f"label={LABEL}={OWNER}", "--format", '{{.Label "io.x-k8s.kind.cluster"}}'
    ).stdout.split()
    return bool(set(shown) - {NAME})


NOTHING = {"containers": "", "volumes": "", "networks": ""}


def volumes() -> set[str]:
    return set(docker("volume", "ls", "-q").stdout.split())


def until(question, seconds: float = 60):
    """Ask until the answer is true; fail after the deadline."""
    answer = console.until(question, seconds)
    assert answer, f"not so after {seconds} s"
    return answer


# ── The engine is not there, or not for us ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", (("cluster", "up"), ("setup",), ("doctor",)))
def test_row_1_no_engine_answers(command, tmp_path):
    began = time.monotonic()
    status, output = outcome(*command, env={"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    assert status == 1 and "Docker is not running: nothing answers at unix://" in output and "DOCKER_HOST" in output
    assert "Traceback" not in output and output.count("→") == 1  # one cause, said once
    assert time.monotonic() - began < 5


def test_row_2_the_socket_is_not_ours_to_use(tmp_path):
    """As root is never refused, the doctor is run as nobody where we are root."""
    place = tmp_path / "clone"
    shutil.copytree(ROOT / "scripts", place / "scripts")
    shutil.copytree(ROOT / "images", place / "images")
    shutil.copy(ROOT / "requirements.txt", place)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "docker.sock"))
        listener.listen()
        (tmp_path / "docker.sock").chmod(0)
        nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}
        done = subprocess.run(
            [shutil.which("python3", path="/usr/bin:/usr/local/bin:/opt/homebrew/bin"), place / "scripts/doctor"],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DOCKER_HOST": f"unix://{tmp_path}/docker.sock"},
            capture_output=True,
            text=True,
            timeout=60,
            **nobody,
        )
    assert done.returncode == 1 and "You may not use Docker at unix://" in done.stdout, done.stdout + done.stderr
    assert "usermod -aG docker" in done.stdout and "Traceback" not in done.stderr


def test_row_4_kind_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(tools, "KIND", tmp_path / "kind")
    with pytest.raises(Failure, match="kind is not on PATH") as told:
        cluster.kind("version")
    assert "scripts/setup" in told.value.remedy


def test_row_6_the_doctor_explains_a_withheld_capability():
    _, output = outcome("doctor")
    bounding = int(re.search(r"CapBnd:\s*(\w+)", Path("/proc/self/status").read_text())[1], 16)
    assert ("withholds CAP_SYS_RESOURCE" in output) == (not bounding >> 24 & 1)


def test_row_28_the_images_are_not_there(tmp_path):
    """An empty cache, with the Python environment at hand: `cluster up` says what makes the rest."""
    cache = tmp_path / "kubernetes-and-state"
    cache.mkdir()
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); from kit import cluster, console; console.main(cluster.up)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
    )
    assert done.returncode == 1 and "scripts/setup" in done.stderr
    assert_one_sentence(done.stderr)


# ── Names, ports and places ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ("a;touch /tmp/pwned", "x" * 64, "UPPER", "../../etc"))
def test_row_47_a_bad_name_is_refused_before_anything_is_done(name):
    status, output = outcome("cluster", "up", env={"KIND_CLUSTER_NAME": name})
    assert status == 1 and "cannot name a cluster" in output
    assert_one_sentence(output)
    assert ours() == NOTHING


def test_wrong_arguments_exit_with_2():
    assert outcome("cluster", "sideways")[0] == 2


def test_row_7_an_asked_for_port_is_taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        status, output = outcome("cluster", "up", env={"WORKSHOP_HTTP_PORT": str(port)})
    assert status == 1 and f"Port {port} on 127.0.0.1 is taken by" in output and str(os.getpid()) in output
    assert_one_sentence(output)
    assert ours() == NOTHING


def test_row_10_a_foreign_cluster_of_the_same_name_is_never_touched():
    # Its image carries our label; the container's own says that somebody else made it.
    foreign = docker(
        "create", "--label", "io.x-k8s.kind.cluster=foreign", "--label", f"{LABEL}=somebody", "workshop/base:1"
    ).stdout.strip()
    try:
        for action in ("up", "down", "status"):
            status, output = outcome("cluster", action, env={"KIND_CLUSTER_NAME": "foreign"})
            assert status == 1 and "this workshop did not make it" in output and "KIND_CLUSTER_NAME=" in output
            assert_one_sentence(output)
        assert docker("ps", "-aq", "--no-trunc", "--filter", f"id={foreign}").stdout.strip() == foreign
    finally:
        docker("rm", "--force", foreign)


@pytest.mark.parametrize("folder", ("with a space", "ünïcödé-☸"))
def test_row_46_any_path_will_do(folder, tmp_path):
    place = tmp_path / folder
    for part in ("scripts", "images"):
        shutil.copytree(ROOT / part, place / part)
    shutil.copy(ROOT / "requirements.txt", place)
    done = subprocess.run([place / "scripts/cluster", "status"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "There is no cluster faults" in done.stdout, done.stdout + done.stderr


def test_row_46_home_is_unset():
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    done = subprocess.run([SCRIPTS / "cluster", "status"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "There is no cluster faults" in done.stdout, done.stdout + done.stderr


def test_row_46_a_cache_that_cannot_be_written(tmp_path):
    """The cache's place is a file, which not even root can write into."""
    (tmp_path / "file").write_text("")
    status, output = outcome("setup", env={"XDG_CACHE_HOME": str(tmp_path / "file")})
    assert status == 1 and str(tmp_path / "file") in output
    assert_one_sentence(output)


# ── Half-made clusters ────────────────────────────────────────────────────────────────────────────────────────────


def kubeadm_is_at_work() -> bool:
    """Whether kubeadm runs in the control-plane container of the cluster named faults."""
    return docker("exec", f"{NAME}-control-plane", "pgrep", "-f", "kubeadm init", check=False).returncode == 0


def test_row_12_interrupted_while_creating():
    process = start("cluster", "up")
    until(kubeadm_is_at_work)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "Interrupted. Nothing is left half-made" in output
    assert ours() == NOTHING and not cluster.kubeconfig().exists()


def test_rows_11_and_13_killed_while_creating_then_made_by_the_next_run():
    lock = cluster.kubeconfig().with_name(f"{NAME}.kubeconfig.lock")
    lock.touch()
    process = start("cluster", "up")
    until(kubeadm_is_at_work)
    process.kill()
    assert "left behind by a run that was killed" in process.communicate()[0]
    for pid in run(["pgrep", "-f", f"kind create cluster.*--name {NAME}"]).stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    assert cluster.status()[0] == "half-made"
    status, output = outcome("cluster", "up")
    assert status == 0, output
    assert cluster.status()[0] == "usable" and not lock.exists()


# ── A whole cluster ───────────────────────────────────────────────────────────────────────────────────────────────


def containers() -> set[str]:
    return set(docker("ps", "-q", "--filter", f"label=io.x-k8s.kind.cluster={NAME}").stdout.split())


def test_row_9_a_healthy_cluster_is_reused():
    before = containers()
    assert len(before) == 3
    status, output = outcome("cluster", "up")
    assert status == 0 and "already usable" in output and containers() == before


def test_row_15_two_at_once_wait_for_one_another():
    """The first holds the lock while it starts a stopped node; the second says who works, and then finds all well."""
    docker("stop", f"{NAME}-worker")
    both = [start("cluster", "up"), start("cluster", "up")]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum("is at work on the cluster faults; waiting" in output for output in outputs) == 1, outputs
    assert cluster.status()[0] == "usable"


def test_row_50_only_the_loopback_address_is_published():
    published = "".join(docker("port", container).stdout for container in containers())
    addresses = re.findall(r"-> (.*):\d+", published)
    assert len(addresses) == 3 and set(addresses) == {"127.0.0.1"}


def test_row_51_credentials_are_for_their_user_only():
    assert stat.S_IMODE(STATE.stat().st_mode) == 0o700
    assert stat.S_IMODE(cluster.kubeconfig().stat().st_mode) == 0o600


class Canary(http.server.BaseHTTPRequestHandler):
    """A production API server that nobody may talk to."""

    def do_GET(self):
        self.server.hits += 1
        self.send_error(500)

    do_POST = do_DELETE = do_PATCH = do_PUT = do_GET

    def log_message(self, *arguments):
        pass


def test_row_17_the_persons_own_clusters_are_never_read(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Canary)
    server.hits = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own = tmp_path / "config"
    own.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "prod",
                "clusters": [{"name": "prod", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
                "contexts": [{"name": "prod", "context": {"cluster": "prod", "user": "prod"}}],
                "users": [{"name": "prod", "user": {"token": "not-a-secret"}}],
            }
        )
    )
    before = own.read_bytes()
    run([tools.BIN / "kubectl", "--kubeconfig", own, "get", "nodes", "--request-timeout=2s"], check=False)
    assert server.hits > 0  # the canary sings when it is touched
    server.hits = 0
    home = tmp_path / "home" / ".kube"
    home.mkdir(parents=True)
    shutil.copy(own, home / "config")
    environment = {
        "KUBECONFIG": str(own),
        "HOME": str(home.parent),
        "XDG_CACHE_HOME": str(Path(tools.ENVIRONMENT).parents[1]),
    }
    for action in ("status", "up"):
        assert outcome("cluster", action, env=environment)[0] == 0
    server.shutdown()
    assert server.hits == 0 and own.read_bytes() == before == (home / "config").read_bytes()
    assert [path.name for path in home.iterdir()] == ["config"]


def test_row_18_a_changed_context_changes_nothing():
    run([tools.BIN / "kubectl", "config", "--kubeconfig", cluster.kubeconfig(), "unset", "current-context"])
    assert cluster.status()[0] == "usable"


def test_row_19_credentials_that_point_elsewhere_are_not_used():
    text = cluster.kubeconfig().read_text()
    cluster.kubeconfig().write_text(re.sub(r"https://127\.0\.0\.1:\d+", "https://192.0.2.1:6443", text))
    assert cluster.status()[0] == "usable"
    assert "192.0.2.1" not in cluster.kubeconfig().read_text()


def test_row_5_the_kubelet_took_our_settings():
    shown = cluster.kubectl("get", "--raw", f"/api/v1/nodes/{NAME}-worker/proxy/configz").stdout
    kubelet = json.loads(shown)["kubeletconfig"]
    assert kubelet["syncFrequency"] == "5s" and kubelet["crashLoopBackOff"] == {"maxContainerRestartPeriod": "5s"}


NONCE = f"nonce-{os.getpid()}-{time.time_ns()}"
CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: keeper}
spec:
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: faults-worker}
  tolerations:  # nobody would make it again if it were told to leave a node that takes long to come back
    - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute}
    - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute}
  containers:
    - name: keeper
      image: workshop/base:1
      command: [tail, -f, /dev/null]
      volumeMounts: [{name: kept, mountPath: /kept}]
  volumes: [{name: kept, persistentVolumeClaim: {claimName: kept}}]
"""


def read_back() -> str:
    """What the volume of the claim holds."""
    return cluster.kubectl("exec", "keeper", "--", "cat", "/kept/nonce", check=False).stdout.strip()


def test_row_35_a_restarted_node_keeps_the_data():
    cluster.kubectl("apply", "--filename", "-", input=CLAIM)
    cluster.kubectl("wait", "pod/keeper", "--for=condition=Ready", "--timeout=60s")
    cluster.kubectl("exec", "keeper", "--", "sh", "-c", f"echo {NONCE} > /kept/nonce; sync")
    docker("restart", f"{NAME}-worker", f"{NAME}-control-plane")
    began = time.monotonic()
    status, output = outcome("cluster", "up")
    assert status == 0, output
    assert time.monotonic() - began < 60
    until(lambda: read_back() == NONCE)


def test_row_36_a_stopped_cluster_is_said_and_started_again():
    docker("stop", *containers())
    state, sentence = cluster.status()
    assert state == "stopped" and "Run scripts/cluster up" in sentence
    status, output = outcome("doctor")
    assert status == 1 and "is stopped" in output and "scripts/cluster up" in output
    status, output = outcome("cluster", "up")
    assert status == 0, output
    assert cluster.status()[0] == "usable"
    until(lambda: read_back() == NONCE)


def test_nodes_that_have_swapped_addresses_are_waited_for():
    """As after an engine's restart: the API server looks for a kubelet where the other one is, until both tell."""
    workers = {node: cluster.address(node) for node in (f"{NAME}-worker", f"{NAME}-worker2")}
    docker("stop", "--time=1", *workers)
    for node in sorted(workers, key=lambda node: int(workers[node].split(".")[-1]), reverse=True):
        docker("start", node)  # each gets the lowest address that is free
    swapped = {node: cluster.address(node) for node in workers}
    assert swapped != workers
    status, output = outcome("cluster", "up")
    assert status == 0, output
    known = "{.status.addresses[?(@.type=='InternalIP')].address}"
    assert swapped == {
        node: cluster.kubectl("get", "node", node, f"--output=jsonpath={known}").stdout for node in workers
    }


def test_an_older_cluster_is_mended_and_serves_the_gateway_api():
    """One from before the Gateway API, with a Traefik that knows nothing of it, need not be made anew."""
    cluster.kubectl("delete", "deployment/traefik", "--namespace=ingress")
    cluster.kubectl("delete", "--filename", tools.GATEWAY_API)
    cluster.kubectl("annotate", "nodes", "--all", "--overwrite", f"{cluster.MARK}=older")
    status, output = outcome("cluster", "up")
    assert status == 0 and "mended" in output, output
    cluster.kubectl("wait", "gatewayclass/traefik", "--for=condition=Accepted", "--timeout=60s")


def test_row_14_a_node_that_does_not_become_ready_is_said(monkeypatch):
    """kind itself exits 0 when its --wait runs out; our own wait does not."""
    monkeypatch.setattr(cluster, "READY_SECONDS", 3)
    docker("exec", f"{NAME}-worker", "pkill", "-STOP", "-x", "kubelet")
    try:
        cluster.kubectl("wait", f"node/{NAME}-worker", "--for=condition=Ready=Unknown", "--timeout=60s")
        with pytest.raises(Failure, match="nodes not Ready after 3 s: .*faults-worker") as told:
            cluster.wait_for("nodes", "Ready")
        assert "scripts/cluster down" in told.value.remedy
    finally:
        docker("exec", f"{NAME}-worker", "pkill", "-CONT", "-x", "kubelet")
    cluster.kubectl("wait", f"node/{NAME}-worker", "--for=condition=Ready", "--timeout=60s")


CRASHING = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: watcher, namespace: default}
spec:
  selector: {matchLabels: {app: watcher}}
  template:
    metadata: {labels: {app: watcher}}
    spec:
      containers:
        - name: watcher
          image: workshop/base:1
          command: [sh, -c, "echo too many open files >&2; exit 1"]
          readinessProbe: {exec: {command: ["false"]}}  # or it would be ready in the moment before it ends
"""


def test_row_22_too_few_inotify_instances_are_said_by_name(monkeypatch, tmp_path):
    """The doctor counts what nodes of other clusters hold; a wait that runs out tells what the programs said."""
    monkeypatch.setattr(doctor, "INOTIFY", tmp_path / "max_user_instances")
    doctor.INOTIFY.write_text("1000\n")
    assert doctor.inotify().startswith("1000 inotify instances are allowed")
    doctor.INOTIFY.write_text("128\n")
    assert f"{NAME}-worker" not in doctor.other_nodes()
    monkeypatch.setenv("KIND_CLUSTER_NAME", "another")
    with pytest.raises(doctor.Warning, match=rf"Only 128 inotify .* {NAME}-worker.* may hold \d+ now") as told:
        doctor.inotify()
    assert "sysctl fs.inotify.max_user_instances=512" in told.value.remedy

    monkeypatch.setenv("KIND_CLUSTER_NAME", NAME)
    monkeypatch.setattr(cluster, "READY_SECONDS", 3)
    cluster.kubectl("apply", "--filename", "-", input=CRASHING)
    try:
        restarts = "{.items[0].status.containerStatuses[0].restartCount}"
        ask = ("get", "pods", "--namespace=default", "--selector=app=watcher", f"--output=jsonpath={restarts}")
        until(lambda: cluster.kubectl(*ask, check=False).stdout > "0", 60)
        with pytest.raises(Failure, match="deployments not Available .* watcher ended and said: too many open") as told:
            cluster.wait_for("deployments", "Available", "default")
        assert told.value.remedy == cluster.MORE_WATCHES
    finally:
        cluster.kubectl("delete", "--filename", "-", "--wait", input=CRASHING)


def test_row_37_a_paused_node_is_started_again():
    docker("pause", f"{NAME}-worker2")
    assert cluster.status()[0] == "stopped"
    assert outcome("cluster", "up")[0] == 0
    assert cluster.status()[0] == "usable"


def test_heal_undoes_what_lessons_do_to_nodes():
    docker("stop", "--time=1", f"{NAME}-worker2")
    cluster.kubectl("taint", "nodes", f"{NAME}-worker2", f"{cluster.OUT_OF_SERVICE}=lost:NoExecute")
    cluster.kubectl("cordon", f"{NAME}-worker")
    status, output = outcome("cluster", "heal")
    assert status == 0, output
    for done in (f"started {NAME}-worker2", f"put {NAME}-worker2 back", f"uncordoned {NAME}-worker"):
        assert done in output
    assert cluster.status()[0] == "usable"
    both = [f"{NAME}-worker", f"{NAME}-worker2"]
    marks = cluster.kubectl("get", "nodes", *both, "--output=jsonpath={.items[*].spec['taints','unschedulable']}")
    assert marks.stdout == ""
    assert "nothing to heal" in outcome("cluster", "heal")[1]


def test_a_stopped_node_is_healed_by_a_failing_cell_and_when_its_kernel_is_killed():
    """One that is no worker, or stopped already, is refused in a sentence."""
    sources = ["import faults\nnode = faults.workers()[1]", "faults.stop_node(node)", "1 / 0", "print(faults._hurt)"]
    sources += ["faults.stop_node(node)", "faults.stop_node(node)", "faults.stop_node(node[:-1] + '3')"]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    client = lessons.client(nbformat.v4.new_notebook(cells=cells), ROOT / "notebooks", allow_errors=True)
    done = client.execute().cells
    assert done[3].outputs[0].text == "set()\n"  # whoever divided by nought has had the node back
    # The sixth cell fails, which heals; so the end has nothing to do …
    assert "is exited already. Run scripts/cluster heal" in done[5].outputs[0].traceback[0]
    assert "is no worker of this cluster" in done[6].outputs[0].traceback[0]
    until(lambda: cluster.status()[0] == "usable")
    # … but here it has, though the kernel can't do it any more.
    client.nb.cells = [*cells[:2], nbformat.v4.new_code_cell("import os\nos.kill(os.getpid(), 9)")]
    with pytest.raises(DeadKernelError):
        client.execute()
    until(lambda: cluster.status()[0] == "usable", 90)


def test_row_29_a_lesson_goes_on_after_its_kernel_was_killed():
    """The namespace of a killed kernel is made anew by the next one, and nothing of the dead one still runs."""
    code = f"""
import os, sys
os.chdir({str(ROOT / "notebooks")!r}); sys.path.insert(0, ".")
import lab, subprocess
print(lab.start("test-killed"), flush=True)
tape = lab.record("app=none")
subprocess.run(["kubectl", "create", "configmap", "made-by", "--from-literal=pid=" + str(os.getpid())], check=True)
print("made", flush=True)
sys.stdin.read()
"""
    kernels = []
    try:
        for _ in range(2):
            kernel = subprocess.Popen(
                [sys.executable, "-c", code],
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            kernels.append(kernel)
            said = [kernel.stdout.readline() for _ in range(3)]
            assert said[-1] == "made\n", said
            found = cluster.kubectl(
                "get", "configmap", "made-by", "--namespace=test-killed", "--output=jsonpath={.data.pid}"
            ).stdout
            assert found == str(kernel.pid)
            kernel.kill()
            kernel.wait()
            assert run(["pgrep", "--session", kernel.pid], check=False).stdout == ""
    finally:
        for kernel in kernels:
            kernel.kill()
        cluster.kubectl("delete", "namespace", "test-killed", "--ignore-not-found")


# ── A cluster to be thrown away ───────────────────────────────────────────────────────────────────────────────────────


def single(action) -> tuple[int, str]:
    """Run scripts/cluster for the cluster to be thrown away."""
    return outcome("cluster", action, "--single", env={"KIND_CLUSTER_NAME": SINGLE})


def single_node() -> str:
    """The identity of its container; empty where there is none."""
    return docker("ps", "-aq", "--filter", f"label=io.x-k8s.kind.cluster={SINGLE}").stdout


def test_one_bare_node_is_made_beside_the_cluster():
    before = containers(), cluster.kubeconfig().read_bytes()
    status, output = single("up")
    assert status == 0 and "created (one node)" in output, output
    assert re.findall(r"-> (.*):\d+", docker("port", f"{SINGLE}-control-plane").stdout) == ["127.0.0.1"]
    kubeconfig = STATE / f"{SINGLE}.kubeconfig"
    assert stat.S_IMODE(kubeconfig.stat().st_mode) == 0o600
    what = "nodes,namespaces,customresourcedefinitions"
    shown = run([tools.BIN / "kubectl", "--kubeconfig", kubeconfig, "get", what, "--output=name"]).stdout
    assert shown.split() == [
        f"node/{SINGLE}-control-plane",
        *(f"namespace/{name}" for name in ("default", "kube-node-lease", "kube-public", "kube-system")),
        "namespace/local-path-storage",
    ]
    assert (containers(), cluster.kubeconfig().read_bytes()) == before


def test_the_one_node_is_reused_started_again_and_replaced(monkeypatch):
    first = single_node()
    assert "already usable" in single("up")[1] and single_node() == first
    docker("stop", first.strip())
    assert single("up")[0] == 0 and single_node() == first
    monkeypatch.setenv("KIND_CLUSTER_NAME", SINGLE)
    assert cluster.status() == ("usable", f"The cluster {SINGLE} is usable: one node, to be thrown away.")
    cluster.kubectl("annotate", "nodes", "--all", f"{cluster.MARK}-")
    assert cluster.status()[0] == "half-made"
    status, output = single("up")
    assert status == 0 and "created" in output and single_node() != first, output


@pytest.mark.parametrize("action", ("up", "down"))
def test_a_cluster_with_workers_is_not_thrown_away(action):
    before = containers()
    status, output = outcome("cluster", action, "--single")
    assert status == 1 and "has workers" in output and "KIND_CLUSTER_NAME=" in output
    assert_one_sentence(output)
    assert containers() == before


def test_it_goes_with_the_kernel_of_its_lesson():
    """What an earlier run left is gone when the lesson begins; a killed kernel takes its own along."""
    code = f"""
import os, subprocess, sys
os.chdir({str(ROOT / "notebooks")!r}); sys.path.insert(0, ".")
import lab
lab.start("06-killed")
print(lab.throw_away() == lab.throw_away() == os.environ["THROW_AWAY"], flush=True)
sys.stdin.readline()
make = "KIND_CLUSTER_NAME=$THROW_AWAY ../scripts/cluster up --single > /dev/null"
print(subprocess.run(["bash", "-c", make]).returncode, flush=True)
sys.stdin.read()
"""
    assert single_node()
    kernel = subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert kernel.stdout.readline() == "True\n"
        assert not single_node()
        print(file=kernel.stdin, flush=True)
        assert kernel.stdout.readline() == "0\n"
        assert single_node()
    finally:
        kernel.kill()
        cluster.kubectl("delete", "namespace", "06-killed", "--ignore-not-found")
    until(lambda: not single_node() and not (STATE / f"{SINGLE}.kubeconfig").exists())


@pytest.mark.thorough
def test_its_removal_leaves_a_stopped_cluster_its_network():
    assert single("up")[0] == 0
    docker("stop", *containers())
    assert single("down") == (0, f"The cluster {SINGLE} is removed.\n")
    assert docker("volume", "ls", "-q", "--filter", f"name=-{SINGLE}$").stdout == ""
    assert not list(STATE.glob(f"{SINGLE}*"))
    assert outcome("cluster", "up")[0] == 0
    assert cluster.status()[0] == "usable"
    until(lambda: read_back() == NONCE)


# ── JupyterLab ────────────────────────────────────────────────────────────────────────────────────────────────────


def listening_addresses(port: int) -> set[str]:
    """The local addresses (hexadecimal, as the kernel shows them) on which a TCP port listens."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in Path(table).read_text().splitlines()[1:]:
            address, state = row.split()[1], row.split()[3]
            if state == "0A" and int(address.rsplit(":")[-1], 16) == port:
                found.add(address.rsplit(":")[0])
    return found


def test_row_49_jupyterlab_listens_on_the_loopback_address_and_wants_its_token():
    process = start("start", "--no-browser")
    try:
        for line in process.stdout:
            if found := re.search(r"(http://127\.0\.0\.1:(\d+))/lab/tree/(\S+)\?token=(\S+)", line):
                break
        base, port, lesson, token = found.groups()
        assert listening_addresses(int(port)) == {"0100007F"}
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{base}/api/contents/{lesson}", timeout=10)
        with urllib.request.urlopen(f"{base}/api/contents/{lesson}?token={token}", timeout=10) as answer:
            cells = json.load(answer)["content"]["cells"]
        assert cells and not any(cell.get("outputs") for cell in cells)
        picture = re.search(r"\((pictures/\S+)\)", json.dumps(cells))[1]
        with urllib.request.urlopen(f"{base}/files/{picture}?token={token}", timeout=10) as answer:
            assert "svg" in answer.headers["Content-Type"] and b"<svg" in answer.read()
    finally:
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "The cluster goes on running" in rest
    assert token not in (STATE / "jupyter.log").read_text()


# ── The end ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_52_and_53_down_leaves_nothing_and_may_be_said_twice():
    others = {
        line for line in docker("ps", "-a", "--format", "{{.ID}} {{.Names}}").stdout.splitlines() if NAME not in line
    }
    kept_images = set(docker("images", "--quiet").stdout.split())  # in no order, where they were made in one moment
    own_volumes = {
        mount["Name"]
        for container in containers()
        for mount in json.loads(docker("inspect", container, "--format", "{{json .Mounts}}").stdout)
        if mount["Type"] == "volume"
    }
    assert own_volumes
    assert outcome("cluster", "down") == (0, "The cluster faults is removed.\n")
    assert ours() == NOTHING and not own_volumes & volumes()
    assert not list(STATE.glob(f"{NAME}*"))
    assert outcome("cluster", "down") == (0, "There is no cluster faults.\n")
    assert set(docker("ps", "-a", "--format", "{{.ID}} {{.Names}}").stdout.splitlines()) >= others
    assert set(docker("images", "--quiet").stdout.split()) == kept_images


def test_row_8_a_port_that_is_taken_at_the_last_moment(monkeypatch):
    """Our look says free, the port is taken all the same: kind fails, and another pair is chosen."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        first = next(pair for pair in ((8081 + n, 8444 + n) for n in range(100)) if not any(map(cluster.taken, pair)))
        listener.bind(("127.0.0.1", first[0]))
        listener.listen()
        stack.callback(cluster.down)
        honest, asked = cluster.taken, []

        def late(port):
            asked.append(port)
            return port in (80, 443) or (honest(port) and asked.count(port) > 1)

        monkeypatch.setattr(cluster, "taken", late)
        assert "created" in cluster.up()
        assert cluster.ports()["http"] != first[0]
    assert images.label(images.own_node(), LABEL) == OWNER
