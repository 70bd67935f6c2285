"""notebooks/lab.py on the real cluster: what it gives a lesson, what it refuses, what it says when nothing moves."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kit import LABEL, OWNER
from kubernetes.client import ApiException, AppsV1Api, CoreV1Api

import lab

CONTAINER = {
    "name": "main",
    "image": "workshop/base:1",
    "imagePullPolicy": "IfNotPresent",
    "command": ["tail", "-f", "/dev/null"],
    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
}
SPEC = {
    "containers": [CONTAINER],
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "terminationGracePeriodSeconds": 1,
}


def in_charge(kind, replicas):
    """A StatefulSet or a Deployment called "db"."""
    template = {"metadata": {"labels": {"app": "db"}}, "spec": SPEC}
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": "db"}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "db"}, "spec": spec}


def bash(script):
    """What a %%bash cell would print, and its exit status."""
    result = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=False)
    return result.stdout + result.stderr, result.returncode


@pytest.fixture
def elsewhere(tmp_path, environment, monkeypatch):
    """Another clone, without a cluster; returns where its kubeconfig would be."""
    for folder in (".workshop", "manifests", "notebooks"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr(lab, "_namespace", None)
    return tmp_path / ".workshop" / f"{os.environ.get('KIND_CLUSTER_NAME') or 'state'}.kubeconfig"


# ── start ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_starting_again_gives_an_empty_namespace(fresh):
    lab.start(fresh)
    first = CoreV1Api().read_namespace(fresh).metadata
    assert first.labels[LABEL] == OWNER
    assert {first.labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "warn")} == {"restricted"}
    CoreV1Api().create_namespaced_config_map(fresh, {"metadata": {"name": "left"}})
    lab.start(fresh)
    assert CoreV1Api().read_namespace(fresh).metadata.uid != first.uid
    assert "left" not in [each.metadata.name for each in CoreV1Api().list_namespaced_config_map(fresh).items]
    CoreV1Api().create_namespaced_pod(fresh, {"metadata": {"name": "at-once"}, "spec": SPEC})  # refused if too early


def test_a_namespace_of_somebody_else_is_refused(fresh, cluster):
    cluster.kubectl("create", "namespace", fresh)
    with pytest.raises(lab.Problem, match="did not make it"):
        lab.start(fresh)
    assert cluster.kubectl("get", "namespace", fresh, "--output=jsonpath={.status.phase}").stdout == "Active"
    assert "Set up" in bash("kubectl get pods")[0]


def test_the_kubeconfig_is_private_and_knows_one_cluster(started):
    path = Path(os.environ["KUBECONFIG"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    config = yaml.safe_load(path.read_text())
    assert [len(config[kind]) for kind in ("clusters", "users", "contexts")] == [1, 1, 1]
    assert config["contexts"][0]["context"]["namespace"] == started
    assert bash("kubectl get configmaps --output=name") == ("configmap/kube-root-ca.crt\n", 0)


def test_the_kubeconfig_goes_with_the_kernel(fresh):
    script = f"import lab, os; lab.start({fresh!r}); print(os.path.exists(p := os.environ['KUBECONFIG']), p)"
    command = [sys.executable, "-c", script]
    existed, path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(maxsplit=1)
    assert existed == "True" and fresh in path and not os.path.exists(path.strip())


def test_a_bash_cell_stops_at_the_first_failure(started):
    assert bash("echo before\nfalse | true\necho after") == ("before\n", 1)


def test_kubectl_is_the_pinned_one_and_the_ingress_is_known(started):
    assert bash("command -v kubectl")[0].strip() == str(Path(sys.executable).with_name("kubectl"))
    answer = bash('curl --silent --output /dev/null --write-out "%{http_code}" "http://127.0.0.1:$INGRESS_HTTP/"')
    assert answer == ("404", 0)


def test_without_a_cluster_it_says_what_to_run(elsewhere):
    with pytest.raises(lab.Problem, match="Run scripts/start first"):
        lab.start("test-lab")


def test_a_cluster_on_another_machine_is_refused(elsewhere, cluster):
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://192.0.2.1:6443"
    elsewhere.write_text(yaml.safe_dump(config))
    with pytest.raises(lab.Problem, match=r"points to https://192\.0\.2\.1:6443, not to this machine"):
        lab.start("test-lab")
    assert "Set up" in bash("kubectl get pods")[0]


def test_before_the_start_it_says_what_to_run(monkeypatch):
    monkeypatch.setattr(lab, "_namespace", None)
    for call in (lab.record, lambda: lab.load("http://votes"), lambda: lab.eventually(bool, seconds=0)):
        with pytest.raises(lab.Problem, match='the cell under "Set up" first'):
            call()


# ── replace ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pods_are_replaced_by_whoever_is_in_charge(started):
    AppsV1Api().create_namespaced_deployment(started, in_charge("Deployment", 2))
    lab.eventually(lambda: AppsV1Api().read_namespaced_deployment("db", started).status.ready_replicas == 2)

    def names():
        return {pod.metadata.name for pod in CoreV1Api().list_namespaced_pod(started).items}

    before = names()
    assert lab.replace("app=db")
    assert len(names()) == 2 and not names() & before


def test_a_pod_that_nobody_replaces_is_told(started):
    CoreV1Api().create_namespaced_pod(started, {"metadata": {"name": "db-0", "labels": {"app": "db"}}, "spec": SPEC})
    lab.eventually(lambda: lab._state(CoreV1Api().read_namespaced_pod("db-0", started)) == "ready")
    assert not lab.replace("app=db", seconds=10)


# ── record ────────────────────────────────────────────────────────────────────────────────────────────────────────

UP = [f"db-{number} {step}" for number in range(3) for step in ("starting", "ready")]
DOWN = [f"db-{number} {step}" for number in (2, 1, 0) for step in ("terminating", "gone")]


def test_the_timeline_of_a_stateful_set(started, capsys):
    tape = lab.record("app=db")
    AppsV1Api().create_namespaced_stateful_set(started, in_charge("StatefulSet", 3))
    lab.eventually(lambda: AppsV1Api().read_namespaced_stateful_set("db", started).status.ready_replicas == 3)
    AppsV1Api().patch_namespaced_stateful_set("db", started, {"spec": {"replicas": 0}})
    lab.eventually(lambda: not CoreV1Api().list_namespaced_pod(started).items)
    tape.stop()
    assert capsys.readouterr().out.splitlines() == UP + DOWN


def test_pods_of_a_deployment_get_letters(started, capsys):
    AppsV1Api().create_namespaced_deployment(started, in_charge("Deployment", 1))
    lab.eventually(lambda: AppsV1Api().read_namespaced_deployment("db", started).status.ready_replicas)
    tape = lab.record("app=db")
    CoreV1Api().delete_collection_namespaced_pod(started)
    lab.eventually(lambda: len(tape.steps) == 4)
    tape.stop()
    steps = capsys.readouterr().out.splitlines()
    assert [step for step in steps if "-a" in step] == ["db-a terminating", "db-a gone"]
    assert [step for step in steps if "-b" in step] == ["db-b starting", "db-b ready"]
    tape.stop(without="ready")
    assert capsys.readouterr().out.splitlines() == [step for step in steps if step != "db-b ready"]


def test_a_recording_that_was_cut_off_says_so(started, monkeypatch):
    tape = lab.record()
    CoreV1Api().create_namespaced_pod(started, {"metadata": {"name": "seen"}, "spec": SPEC})
    lab.eventually(lambda: tape.steps)
    tape._watch.stop()
    tape._thread.join(timeout=10)
    CoreV1Api().create_namespaced_pod(started, {"metadata": {"name": "unseen"}, "spec": SPEC})
    monkeypatch.setattr(lab, "RECORDING_SECONDS", 0.5)
    with pytest.raises(lab.Problem, match="cut off"):
        tape.stop()


# ── load ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_load_counts_what_is_lost(started):
    core, port = CoreV1Api(), {"port": 80, "targetPort": 8080}
    app = CONTAINER | {"image": "workshop/votes:1", "command": ["gunicorn", "app:app"]}
    pod = {"metadata": {"name": "votes", "labels": {"app": "votes"}}, "spec": SPEC | {"containers": [app]}}
    core.create_namespaced_service(
        started, {"metadata": {"name": "votes"}, "spec": {"selector": {"app": "votes"}, "ports": [port]}}
    )
    core.create_namespaced_pod(started, pod)
    load = lab.load("http://votes/")
    assert load.stop() == 0 and len(load.answers) >= 25
    load = lab.load("http://votes/")
    core.delete_namespaced_pod("votes", started)
    lab.eventually(lambda: "votes" not in [each.metadata.name for each in core.list_namespaced_pod(started).items])
    core.create_namespaced_pod(started, pod)
    assert 0 < load.stop() < len(load.answers)
    lab.eventually(lambda: [each.metadata.name for each in core.list_namespaced_pod(started).items] == ["votes"])


# ── eventually and check ──────────────────────────────────────────────────────────────────────────────────────────


def test_eventually_returns_the_answer_and_waits_for_what_is_not_there_yet(started):
    answers = iter([0, "", "yes"])
    assert lab.eventually(lambda: next(answers)) == "yes"
    lab.record()  # a recording that nobody stops must not be in the way
    with pytest.raises(ApiException, match="403|422|Invalid"):
        lab.eventually(lambda: CoreV1Api().create_namespaced_pod(started, {"metadata": {"name": "BAD"}, "spec": SPEC}))
    with pytest.raises(lab.Problem, match=rf"Not within 0\.2 seconds\. Nothing in {started} complains"):
        lab.eventually(lambda: CoreV1Api().read_namespaced_pod("nowhere", started), seconds=0.2)


def test_eventually_tells_why_a_pod_does_not_run(started):
    missing = CONTAINER | {"image": "workshop/nowhere:1", "imagePullPolicy": "Never"}
    CoreV1Api().create_namespaced_pod(started, {"metadata": {"name": "web"}, "spec": SPEC | {"containers": [missing]}})
    with pytest.raises(lab.Problem) as caught:
        lab.eventually(lambda: False, seconds=4)
    assert "Pod web: ErrImageNeverPull." in str(caught.value)
    assert "workshop/nowhere:1" in str(caught.value)
    assert caught.value._render_traceback_() == [str(caught.value)]


def test_eventually_tells_why_a_claim_waits(started):
    size = {"requests": {"storage": "1Mi"}}
    spec = {"storageClassName": "nowhere", "accessModes": ["ReadWriteOnce"], "resources": size}
    CoreV1Api().create_namespaced_persistent_volume_claim(started, {"metadata": {"name": "data"}, "spec": spec})
    with pytest.raises(lab.Problem) as caught:
        lab.eventually(lambda: False, seconds=2)
    assert "Claim data: Pending." in str(caught.value)
    assert 'storageclass.storage.k8s.io "nowhere" not found' in str(caught.value)


def test_a_check_fails_on_what_is_not_found_and_on_nothing_else(started, capsys):
    assert lab.check("it is there", lambda: CoreV1Api().read_namespace(started), "unseen")
    assert not lab.check("it is false", lambda: [], "look again")
    assert not lab.check("it is missing", lambda: CoreV1Api().read_namespaced_pod("nowhere", started))
    assert capsys.readouterr().out == "✓ it is there\n✗ it is false\n  look again\n✗ it is missing\n"
    with pytest.raises(ApiException):
        lab.check("refused", lambda: CoreV1Api().create_namespaced_pod(started, {"metadata": {"name": "BAD"}}))
    with pytest.raises(ZeroDivisionError):
        lab.check("a bug", lambda: 1 / 0)
