"""kubectl everything (notebooks/bin): what it lists on the real cluster, and what it says where it can't."""

import os
import subprocess

import pytest
import yaml
from kit import LABEL, OWNER, ROOT

CREATE_ONLY = ["bindings", "localsubjectaccessreviews.authorization.k8s.io"]
ALWAYS = ["configmap/kube-root-ca.crt", "serviceaccount/default"]  # in every namespace


def everything(*arguments, **environment):
    """Run the plugin as kubectl does; returns what it prints, what it complains of, and its exit status."""
    path = f"{ROOT / 'notebooks/bin'}{os.pathsep}{os.environ['PATH']}"
    command = ["kubectl", "everything", *arguments]
    done = subprocess.run(command, env=os.environ | {"PATH": path} | environment, capture_output=True, text=True,
                          check=False)  # fmt: skip
    return done.stdout, done.stderr, done.returncode


@pytest.fixture(scope="module")
def namespace(cluster):
    """A namespace with a ConfigMap, a Role, an account and an Event; removed afterwards."""
    name = f"test-plugin-{os.getpid()}"
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("label", "namespace", name, f"{LABEL}={OWNER}")
    for made in ALWAYS:
        cluster.kubectl("wait", "--for=create", made, f"--namespace={name}", "--timeout=30s")
    cluster.kubectl("create", "configmap", "settings", f"--namespace={name}")
    cluster.kubectl("create", "role", "reader", "--verb=list", "--resource=configmaps", f"--namespace={name}")
    cluster.kubectl(
        "create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={name}:default", f"--namespace={name}"
    )
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "told", "namespace": name},
        "involvedObject": {"kind": "ConfigMap", "name": "settings", "namespace": name},
    }
    cluster.kubectl("create", "--filename=-", input=yaml.safe_dump(event))
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def test_it_lists_every_object_and_says_what_it_left_out(namespace):
    bindings = ["role.rbac.authorization.k8s.io/reader", "rolebinding.rbac.authorization.k8s.io/reader"]
    for where in (["-n", namespace], [f"--namespace={namespace}"]):
        names, left_out, status = everything(*where)
        assert names.splitlines() == sorted([*ALWAYS, "configmap/settings", *bindings])
        assert [f"not listed: {kind}: no list verb" for kind in CREATE_ONLY] == left_out.splitlines()[:-1]
        assert left_out.endswith("not listed: events: left out, they expire\n")
        assert status == 0


def test_without_a_namespace_it_looks_where_kubectl_does(namespace, cluster, tmp_path):
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["contexts"][0]["context"]["namespace"] = namespace
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    names, _, status = everything(KUBECONFIG=str(tmp_path / "kubeconfig"))
    assert "configmap/settings" in names and status == 0


def test_what_is_not_permitted_is_said(namespace):
    names, left_out, status = everything("-n", namespace, "--as", f"system:serviceaccount:{namespace}:default")
    assert names.splitlines() == ["configmap/kube-root-ca.crt", "configmap/settings"]
    refused = [line for line in left_out.splitlines() if line.endswith(": not permitted")]
    assert {"not listed: secrets: not permitted", "not listed: deployments.apps: not permitted"} < set(refused)
    assert status == 1


def test_a_namespace_that_is_not_there(cluster):
    assert everything("-n", "nowhere") == ("", 'Error from server (NotFound): namespaces "nowhere" not found\n', 1)


def test_a_cluster_that_is_not_there(cluster, tmp_path):
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    names, said, status = everything(KUBECONFIG=str(tmp_path / "kubeconfig"))
    assert names == "" and len(said.splitlines()) == 1 and "127.0.0.1:1 was refused" in said and status == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pods"], "pods is not understood"),
        (["--all"], "--all is not understood"),
        (["-n"], "-n needs a value"),
        (["--as", "--help"], "--as needs a value"),
    ],
)
def test_a_wrong_command_is_refused(arguments, said):
    names, complaint, status = everything(*arguments)
    assert names == "" and complaint == f"{said}. See kubectl everything --help.\n" and status == 2


def test_it_explains_itself():
    text, complaint, status = everything("--help")
    assert "Usage:\n  kubectl everything [-n NAMESPACE]" in text and complaint == "" and status == 0
