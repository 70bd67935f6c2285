"""What lessons use to see: a namespace of their own, a tape, a load, a wait and a check. Doing is kubectl's part."""

import atexit
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import kubernetes
import yaml
from kubernetes.client import ApiException, ApiextensionsV1Api, CoreV1Api, CustomObjectsApi
from survival import Matrix

import chart

OWNER_LABEL = "kubernetes-and-state.owner"  # with the user's number, on everything that the workshop may delete
RECORDING_SECONDS = 10  # how long a recording may lag behind the cluster
_here = Path(__file__).resolve().parent
_namespace = None
_ends = {}  # what waits for the end of this kernel, by the name of the cluster that it then removes


class Problem(Exception):
    """Something that the learner can put right; a notebook shows its sentence and no traceback."""

    def _render_traceback_(self):
        return [str(self)]


def start(lesson: str) -> str:
    """Give the lesson an empty namespace of its own, and this notebook a kubeconfig that knows nothing else.

    Cells that begin with %%bash then use that namespace, and stop at the first command that fails.
    """
    global _namespace
    _namespace = None
    cluster = os.environ.get("KIND_CLUSTER_NAME") or "state"
    os.environ.update({
        "KUBECONFIG": str(_here / "before-set-up.kubeconfig"),  # until all went well
        # The workshop's own kubectl first, then its plugins.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{_here / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "SHELLOPTS": "errexit:pipefail",
        "NAMESPACE": lesson,
    })  # fmt: skip

    config = _own_kubeconfig(cluster, lesson)
    kubernetes.config.load_kube_config(config_file=config)
    command = ["docker", "port", f"{cluster}-control-plane"]
    ports = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for scheme, port in (("HTTP", "80"), ("HTTPS", "443")):
        if found := re.search(rf"^{port}/tcp -> 127\.0\.0\.1:(\d+)$", ports, re.MULTILINE):
            os.environ[f"INGRESS_{scheme}"] = found[1]

    api = CoreV1Api()
    for node in api.list_node().items:
        if not any(each.type == "Ready" and each.status == "True" for each in node.status.conditions):
            raise Problem(f"The node {node.metadata.name} is not Ready. Run scripts/cluster heal, then this again.")
    owner = str(os.getuid())
    if found := _or_none(lambda: api.read_namespace(lesson)):
        if (found.metadata.labels or {}).get(OWNER_LABEL) != owner:
            raise Problem(f"The namespace {lesson} exists, and the workshop did not make it. Delete it first.")
        with suppress(ApiException):  # it may be on its way out already
            api.delete_namespace(lesson)
        _let_go(lesson)
        _namespace = lesson
        eventually(lambda: not _or_none(lambda: api.read_namespace(lesson)), seconds=90)
    security = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    api.create_namespace({"metadata": {"name": lesson, "labels": {OWNER_LABEL: owner} | security}})
    _namespace = lesson
    # A Pod that comes before these two is refused.
    eventually(lambda: api.read_namespaced_service_account("default", lesson))
    eventually(lambda: api.read_namespaced_config_map("kube-root-ca.crt", lesson))
    # Few Pods have anything to say to the API server, and one that is given no token for it starts and ends sooner.
    api.patch_namespaced_service_account("default", lesson, {"automountServiceAccountToken": False})
    os.environ["KUBECONFIG"] = config
    return lesson


def _let_go(namespace: str) -> None:
    """Delete what is of a kind that a lesson has defined, finalizers or not: whoever answers to those may be gone."""
    api = CustomObjectsApi()
    for kind in ApiextensionsV1Api().list_custom_resource_definition(label_selector=OWNER_LABEL).items:
        where = kind.spec.group, kind.spec.versions[0].name, namespace, kind.spec.names.plural
        for each in api.list_namespaced_custom_object(*where)["items"]:
            with suppress(ApiException):  # gone at once
                api.delete_namespaced_custom_object(*where, each["metadata"]["name"])
                api.patch_namespaced_custom_object(*where, each["metadata"]["name"], {"metadata": {"finalizers": None}})


def throw_away() -> str:
    """Name a second cluster, which `scripts/cluster up --single` makes, and which the lesson may break.

    What an earlier run has left of it is removed now, and this one's when the kernel ends, however it ends.
    """
    name = f"{(os.environ.get('KIND_CLUSTER_NAME') or 'state')[:27]}-{_started()[:2]}"
    os.environ["THROW_AWAY"] = name
    environment = os.environ | {"KIND_CLUSTER_NAME": name}
    down = [str(_here.parent / "scripts" / "cluster"), "down", "--single"]
    done = subprocess.run(down, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Problem(done.stderr.strip())
    if name not in _ends:
        # This pipe breaks with the kernel, even one that is killed. Then `cat` ends, and the cluster after it.
        wait, quiet = ["sh", "-c", 'cat; exec "$0" "$@"', *down], subprocess.DEVNULL
        _ends[name] = subprocess.Popen(wait, env=environment, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet,
                                       start_new_session=True)  # fmt: skip
    return name


def _own_kubeconfig(cluster: str, namespace: str) -> str:
    """Write the file that lets this notebook reach one cluster, and one namespace if none is named."""
    places = [Path.cwd(), *Path.cwd().parents]
    root = next((place for place in places if (place / ".workshop").is_dir() and (place / "manifests").is_dir()), None)
    source = root and root / ".workshop" / f"{cluster}.kubeconfig"
    if not source or not source.exists():
        raise Problem(f"There is no cluster {cluster} here. Run scripts/start first.")
    context = f"kind-{cluster}"
    config = yaml.safe_load(source.read_text())
    for kind in ("clusters", "users", "contexts"):
        config[kind] = [each for each in config[kind] if each["name"] == context]
    server = config["clusters"][0]["cluster"]["server"] if config["clusters"] else "nowhere"
    if not re.fullmatch(r"https://127\.0\.0\.1:\d+", server):
        raise Problem(f"The kubeconfig of {cluster} points to {server}, not to this machine. Run scripts/start first.")
    config["current-context"] = context
    config["contexts"][0]["context"]["namespace"] = namespace
    folder = root / ".workshop" / "notebooks" / cluster
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in folder.glob("*-*.kubeconfig"):  # a kernel that is killed can't take its file along
        if not _runs(int(left.stem.rpartition("-")[2])):
            left.unlink(missing_ok=True)
    path = folder / f"{namespace}-{os.getpid()}.kubeconfig"
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        yaml.safe_dump(config, file)
    atexit.register(path.unlink, missing_ok=True)
    return str(path)


def _runs(process: int) -> bool:
    """Whether a process of this number runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is somebody else's
    return True


def _started() -> str:
    """The lesson's namespace."""
    if _namespace is None:
        raise Problem('Run the cell under "Set up" first.')
    return _namespace


def _or_none(question):
    """The question's answer, or None where the API server does not find what it is about."""
    try:
        return question()
    except ApiException as error:
        if error.status != 404:
            raise
        return None


def check(claim: str, question, hint: str = "") -> bool:
    """Print ✓ and the claim if the question's answer is true; ✗, the claim and the hint if it is not, or not found."""
    true = bool(_or_none(question))
    print(f"{'✓' if true else '✗'} {claim}")
    if hint and not true:
        print(f"  {hint}")
    return true


def eventually(question, seconds: float = 30):
    """Ask until the answer is true, and return it; if that takes too long, say what the cluster complains about."""
    deadline = time.monotonic() + seconds
    while not (answer := _or_none(question)):
        if time.monotonic() > deadline:
            raise Problem(f"Not within {seconds:g} seconds. {_complaints(_started())}")
        time.sleep(0.1)
    return answer


def replace(selector: str, seconds: float = 60) -> bool:
    """Delete the Pods that the selector chooses; whether they are gone in time, and as many others are ready.

    The Pods themselves are asked: if a command failed on a busy machine, a check would blame the learner for it.
    """
    api, namespace = CoreV1Api(), _started()

    def chosen():
        pods = api.list_namespaced_pod(namespace, label_selector=selector).items
        return {pod.metadata.uid: _state(pod) for pod in pods}

    def replaced():
        now = chosen()
        return not before & now.keys() and list(now.values()).count("ready") >= wanted

    found = chosen()
    before, wanted = found.keys(), list(found.values()).count("ready")
    api.delete_collection_namespaced_pod(namespace, label_selector=selector)
    try:
        return eventually(replaced, seconds)
    except Problem:
        return False


def _state(pod) -> str:
    """In a word, how far a Pod is: starting, ready, terminating; succeeded or failed."""
    if pod.metadata.deletion_timestamp:
        return "terminating"
    if pod.status.phase in ("Succeeded", "Failed"):
        return pod.status.phase.lower()
    ready = any(each.type == "Ready" and each.status == "True" for each in pod.status.conditions or [])
    return "ready" if ready else "starting"


def _complaints(namespace: str) -> str:
    """Why nothing moves, in a line or two: what waits, and the latest warnings."""
    api, found = CoreV1Api(), []
    for condition in (space := _or_none(lambda: api.read_namespace(namespace))) and space.status.conditions or []:
        if condition.status == "True" and condition.type.endswith("Remaining"):
            found.append(condition.message)
    for pod in api.list_namespaced_pod(namespace).items:
        for container in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
            if waiting := container.state.waiting:
                found.append(f"Pod {pod.metadata.name}: {waiting.reason}.")
    for claim in api.list_namespaced_persistent_volume_claim(namespace).items:
        if claim.status.phase != "Bound":
            found.append(f"Claim {claim.metadata.name}: {claim.status.phase}.")
    warnings = api.list_namespaced_event(namespace, field_selector="type=Warning").items
    warnings.sort(key=lambda event: int(event.metadata.resource_version))
    found += [f"{event.involved_object.name}: {event.message}" for event in warnings[-2:]]
    return " ".join(dict.fromkeys(found)) or f"Nothing in {namespace} complains."


def record(selector: str = "") -> "Tape":
    """Start to follow the Pods that the selector chooses, while later cells run; `stop` prints what became of them."""
    return Tape(_started(), selector)


class Tape:
    """A recording of Pods: starting, ready, terminating, gone. Pods of a Deployment, named at random, get letters."""

    def __init__(self, namespace, selector):
        self.steps = []  # (seconds, name, step before or None, step), in the order in which the API server told of them
        self._states, self._names, self._began, self._seconds = {}, {}, time.monotonic(), None
        self._list = lambda: CoreV1Api().list_namespaced_pod(namespace, label_selector=selector)
        present = self._list()
        self._states = self._by_uid(present.items)
        self._watch = kubernetes.watch.Watch()
        stream = self._watch.stream(CoreV1Api().list_namespaced_pod, namespace, label_selector=selector,
                                    resource_version=present.metadata.resource_version)  # fmt: skip
        self._thread = threading.Thread(target=self._follow, args=[stream], daemon=True)
        self._thread.start()

    def _by_uid(self, pods):
        return {pod.metadata.uid: _state(pod) for pod in pods}

    def _name(self, pod):
        """The Pod's name; where a Deployment invented it, the Deployment's and a letter, in order of appearance."""
        revision = (pod.metadata.labels or {}).get("pod-template-hash")
        if not revision:
            return pod.metadata.name
        letter = "abcdefghijklmnopqrstuvwxyz"[len(self._names) % 26]
        base = pod.metadata.generate_name.removesuffix(f"-{revision}-")
        return self._names.setdefault(pod.metadata.uid, f"{base}-{letter}")

    def _follow(self, stream):
        with suppress(Exception):  # stopping a watch breaks its connection; `stop` notices any other failure
            for event in stream:
                pod = event["object"]
                step = "gone" if event["type"] == "DELETED" else _state(pod)
                before = self._states.get(pod.metadata.uid)
                if before != step:
                    self.steps.append((time.monotonic() - self._began, self._name(pod), before, step))
                    self._states[pod.metadata.uid] = step
                if step == "gone":
                    del self._states[pod.metadata.uid]

    def stop(self, without: str = ""):
        """Wait until the recording is as new as the cluster, end it, and print it; the value is its chart.

        Args:
            without: a step that is not printed, because it is chance what comes before it. The chart shows it.
        """
        deadline = time.monotonic() + RECORDING_SECONDS
        while self._seconds is None and self._states != self._by_uid(self._list().items):
            if time.monotonic() > deadline:
                raise Problem("The recording was cut off. Record once more.")
            time.sleep(0.1)
        self._watch.stop()
        self._thread.join(timeout=5)
        self._seconds = self._seconds or time.monotonic() - self._began
        print("\n".join(f"{name} {step}" for _, name, _, step in self.steps if step != without))
        return chart.timeline(self.steps, self._seconds)


def load(url: str) -> "Load":
    """Have a Pod (load.yaml) ask for the URL 50 times a second, until `stop` counts what was lost."""
    return Load(_started(), url)


class Load:
    """Requests from inside the cluster, one after the other.

    Attributes:
        answers: a line for each request, after `stop`: "200 votes-1", or "503 votes-1" or "000 " for one that was lost.
    """

    def __init__(self, namespace, url):
        # A Pod of its own, for an address of its own: connections that an earlier load lost cannot get in its way.
        body = yaml.safe_load((_here / "load.yaml").read_text())
        body["spec"]["containers"][0]["args"].append(f"{url}?[1-99999]")
        pod = CoreV1Api().create_namespaced_pod(namespace, body)
        self._pod = pod.metadata.name, namespace
        self._calm_from = 0
        self._calm_from = self._calm(0)

    def _answers(self):
        eventually(lambda: CoreV1Api().read_namespaced_pod(*self._pod).status.phase != "Pending")
        return CoreV1Api().read_namespaced_pod_log(*self._pod).splitlines()

    def _calm(self, begun):
        """Wait, 30 s at most, for a calm half-second after so many requests; returns how many there are by then."""
        deadline = time.monotonic() + 30
        while True:
            answers = self._answers()
            calm = len(answers) >= begun + 25 and not any(map(_lost, answers[-25:]))
            if calm or time.monotonic() > deadline:
                self.answers = answers[self._calm_from :]
                return len(answers)
            time.sleep(0.1)

    def stop(self) -> int:
        """End the load when it is calm again, and return how many requests did not get an answer with status 200."""
        if _or_none(lambda: CoreV1Api().read_namespaced_pod(*self._pod)):  # unless it was stopped before
            self._calm(len(self._answers()))
            CoreV1Api().delete_namespaced_pod(*self._pod, grace_period_seconds=0)
        return sum(map(_lost, self.answers))


def _lost(answer):
    return not answer.startswith("200 ")


def survival(lesson: int, seen: dict | None = None) -> Matrix:
    """The survival matrix, as far as the lessons up to this one have filled it.

    Args:
        lesson: the number of this lesson.
        seen: what this notebook has seen on the cluster, {(row, column): whether it was still there}. It must be what
            survival.toml says of the cells that the lesson fills.
    """
    matrix = Matrix(lesson)
    if contradictions := seen is not None and matrix.contradictions(seen):
        raise Problem("\n".join(contradictions))
    return matrix
