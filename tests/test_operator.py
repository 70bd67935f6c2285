"""The operator of lesson 13: whom it elects, and on the real cluster what it makes, keeps and waits for."""

import importlib.util
import json
import logging
import os
from contextlib import nullcontext
from types import SimpleNamespace as Object

import kopf
import kubernetes
import pytest
import yaml
from kit import LABEL, OWNER, ROOT, console, lessons
from kopf.testing import KopfRunner

PROGRAM = ROOT / "images/operator/votesdatabase.py"
MANIFESTS = ROOT / "manifests/13-operators-do-the-runbook"
DEFINITION = MANIFESTS / "crd.yaml"


# ── Elections ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def operator(monkeypatch):
    """The program as a module; what it would ask servers and write on Pods is remembered instead."""
    spec = importlib.util.spec_from_file_location("votesdatabase", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(kopf.on, "delete", lambda *_, **__: lambda function: function)  # no handlers of this process
    monkeypatch.setattr(kopf.on, "startup", lambda *_, **__: lambda function: function)
    monkeypatch.setattr(kopf, "timer", lambda *_, **__: lambda function: function)
    spec.loader.exec_module(module)
    module.notes = []
    monkeypatch.setattr(module, "sql", lambda pod, statements: pod.position)
    monkeypatch.setattr(module, "note", lambda pod, role, text: module.notes.append((pod.metadata.name, role)))
    return module


def pod(operator, number, role, position="", container="a", ready=True, leaving=False):
    """A Pod db-0, db-1, …, told its role when its container was called "a"."""
    metadata = Object(name=f"db-{number}", labels={"role": role}, annotations={operator.NOTE: f"a {role} of x"},
                      deletion_timestamp=leaving)  # fmt: skip
    status = Object(conditions=[Object(type="Ready", status=str(ready))],
                    container_statuses=[Object(container_id=container)])  # fmt: skip
    return Object(metadata=metadata, status=status, position=position)


def test_the_server_that_has_received_the_most_is_elected_and_the_lost_one_is_taken_off_the_service(operator):
    pods = [pod(operator, 0, "primary", ready=False), pod(operator, 1, "replica", "0-100-9"),
            pod(operator, 2, "replica", "0-100-10")]  # fmt: skip
    assert operator.elect(pods, 3, 3) is pods[2]
    assert operator.notes == [("db-0", None)]


def test_of_equals_the_first_is_elected(operator):
    pods = [pod(operator, number, "replica", position) for number, position in enumerate(["", ""])]
    assert operator.elect(pods, 2, 2) is pods[0]


@pytest.mark.parametrize(
    "others",
    [
        {"container": "b"},  # restarted: it may have been a primary, or empty, since
        {"ready": False},
        {"leaving": True},
        {"role": "none"},
    ],
)
def test_nobody_is_elected_while_the_newest_row_may_be_on_a_server_that_is_missing(operator, others):
    copies = [pod(operator, 1, "replica", "0-100-9"), pod(operator, 2, **{"role": "replica"} | others)]
    with pytest.raises(operator.Waiting, match="Nobody takes writes"):
        operator.elect([pod(operator, 0, "primary", ready=False), *copies], 3, 3)
    assert operator.notes == []


def test_when_all_run_again_the_one_with_the_newest_row_is_elected_even_if_it_was_the_primary(operator):
    pods = [pod(operator, 0, "primary", "0-100-10", container="b"), pod(operator, 1, "replica", "0-100-9")]
    assert operator.elect(pods, 2, 2) is pods[0]


def test_a_server_that_is_to_go_is_not_elected_and_not_let_go_while_it_alone_has_the_newest_row(operator):
    pods = [pod(operator, 0, "replica", "0-100-9"), pod(operator, 1, "primary", "0-100-10")]
    with pytest.raises(operator.Waiting, match="on a server that is to go"):
        operator.elect(pods, 2, 1)
    pods[0].position = "0-100-10"
    assert operator.elect(pods, 2, 1) is pods[0]


def test_it_is_not_ready_while_servers_are_to_go(operator, monkeypatch):
    pods = [pod(operator, 0, "replica"), pod(operator, 1, "primary")]
    applied = []
    monkeypatch.setattr(operator, "pods_of", lambda name, namespace: pods)
    monkeypatch.setattr(operator, "apply", applied.append)
    with pytest.raises(operator.Waiting, match="Too many servers run: 2, not 1"):
        operator.step("db", "here", {"servers": 1, "secret": "db"}, logging.getLogger())
    assert operator.notes == [("db-1", None), ("db-0", "primary")] and "replicas: 2" in applied[0]


@pytest.mark.parametrize(("follows", "waits"), [("x", True), ("another", False)])
def test_a_deletion_waits_for_the_copies_of_the_primary_and_for_nobody_else(operator, monkeypatch, follows, waits):
    pods = [pod(operator, 0, "primary"), pod(operator, 1, "replica", "-1")]  # it lacks rows: MASTER_GTID_WAIT says -1
    pods[0].status.pod_ip = follows
    monkeypatch.setattr(operator, "pods_of", lambda name, namespace: pods)
    with pytest.raises(operator.Waiting, match="db-1 lacks rows") if waits else nullcontext():
        operator.retire("db", "here", logging.getLogger())
    assert operator.notes == ([] if waits else [("db-0", None)])


# ── The cluster ───────────────────────────────────────────────────────────────────────────────────────────────────


class Database:
    """A VotesDatabase in a namespace of its own, and what its servers say."""

    def __init__(self, cluster, namespace):
        self.cluster, self.namespace = cluster, namespace

    def kubectl(self, *arguments, **options):
        """Run kubectl in the namespace."""
        return self.cluster.kubectl(f"--namespace={self.namespace}", *arguments, **options)

    def wish(self, check=True, **spec):
        """Apply the lesson's VotesDatabase with these fields, None for one that is left out."""
        wish = yaml.safe_load((MANIFESTS / "database.yaml").read_text())
        wish["spec"] = {key: value for key, value in (wish["spec"] | spec).items() if value is not None}
        return self.kubectl("apply", "--filename=-", input=json.dumps(wish), check=check)

    def status(self):
        """What the operator says, once it has seen the newest wish."""
        found = self.kubectl("get", "votesdatabase/db", "--output=json", check=False).stdout
        found = json.loads(found) if found else {"metadata": {"generation": 0}}
        status = found.get("status", {})
        return status if status.get("observedGeneration") == found["metadata"]["generation"] else {}

    def ready(self, servers, but=None):
        """Wait until so many servers are ready; returns the primary, which must not be `but`."""

        def reached():
            status = self.status()
            return status.get("ready") == servers and status["primary"] != but and status["primary"]

        assert (primary := console.until(reached, 120)), self.status()
        return primary

    def sql(self, server, statement):
        """What a server answers."""
        return self.kubectl("exec", server, "--", "mariadb", "votes", "--skip-column-names", f"--execute={statement}")

    def rows(self, server):
        """The rows of a server."""
        return sorted(map(int, self.sql(server, "SELECT * FROM ballots").stdout.split()))


@pytest.fixture
def database(cluster, monkeypatch):
    """The definition, and an empty namespace with the Secret."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))  # for kopf, and for the operator's own questions:
    kubernetes.config.load_kube_config(config_file=str(cluster.kubeconfig), context=cluster.context)
    name = f"test-operator-{os.getpid()}"
    missing = cluster.kubectl("get", f"--filename={DEFINITION}", check=False).returncode
    cluster.kubectl("apply", f"--filename={DEFINITION}")
    cluster.kubectl("label", f"--filename={DEFINITION}", f"{LABEL}={OWNER}", "--overwrite")
    cluster.kubectl("wait", "--for=condition=Established", f"--filename={DEFINITION}")
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("label", "namespace", name, f"{LABEL}={OWNER}")
    cluster.kubectl("create", "secret", "generic", "db", "--from-literal=password=demo", f"--namespace={name}")
    yield Database(cluster, name)
    lessons.delete_namespaces(name)
    if missing:
        cluster.kubectl("delete", f"--filename={DEFINITION}")


def running(database):
    """The operator, in a thread of this process, for as long as a block runs."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(kopf.login_with_kubeconfig)
    command = ["run", "--standalone", f"--namespace={database.namespace}", str(PROGRAM)]
    return KopfRunner(command, registry=registry, timeout=60)


def test_the_schema_refuses_what_is_wrong(database):
    for spec, said in [({"servers": 4}, "should be less than or equal to 3"), ({"servers": 0}, "greater than or equal"),
                       ({"servers": "two"}, 'must be of type integer: "string"'), ({"secret": None}, "spec.secret"),
                       ({"server": 2}, "unknown field")]:  # fmt: skip
        answer = database.wish(check=False, **spec)
        assert answer.returncode and said in answer.stderr, (spec, answer.stderr)
    database.wish(servers=3)


def test_a_namespace_goes_though_nobody_is_left_to_answer_a_finalizer(database):
    database.wish()
    finalizers = json.dumps({"metadata": {"finalizers": ["kopf.zalando.org/KopfFinalizerMarker"]}})
    database.kubectl("patch", "votesdatabase", "db", "--type=merge", f"--patch={finalizers}")
    assert lessons.delete_namespaces(database.namespace) == [database.namespace]


@pytest.mark.timeout(600)
def test_the_life_of_a_database(database):
    database.wish(servers=1)
    with running(database):
        assert database.ready(1) == "db-0"
        database.sql("db-0", "CREATE TABLE ballots (number INT PRIMARY KEY); INSERT INTO ballots VALUES (1)")
        # More servers: the new ones have the old rows.
        database.wish(servers=3)
        assert database.ready(3) == "db-0"
        assert database.rows("db-1") == database.rows("db-2") == [1]
        # What is owned comes back.
        database.kubectl("delete", "service", "db")
        database.kubectl("wait", "--for=create", "service/db", "--timeout=30s")
        # The primary is lost, with its volume.
        database.sql("db-0", "INSERT INTO ballots VALUES (2)")
        database.kubectl("delete", "persistentvolumeclaim", "data-db-0", "--wait=false")
        database.kubectl("delete", "pod", "db-0")
        primary = database.ready(3, but="db-0")
        assert database.rows(primary) == database.rows("db-0") == [1, 2]
        database.sql(primary, "INSERT INTO ballots VALUES (3)")

    # Nobody is there: wishes are kept. The primary is not among those that stay.
    database.wish(servers=1)
    assert database.status() == {}
    with running(database):
        assert database.ready(1) == "db-0"
        assert database.rows("db-0") == [1, 2, 3]

    # Nobody is there: a deletion waits, and who has a connection may still write.
    database.kubectl("delete", "votesdatabase", "db", "--wait=false")
    database.sql("db-0", "INSERT INTO ballots VALUES (4)")
    with running(database):
        database.kubectl("wait", "--for=delete", "votesdatabase/db", "--timeout=60s")
        database.kubectl("wait", "--for=delete", "statefulset/db", "pod/db-0", "--timeout=60s")
        claims = database.kubectl("get", "persistentvolumeclaims", "--output=name").stdout.split()
        assert [claim.partition("/")[2] for claim in claims] == ["data-db-0", "data-db-1", "data-db-2"]
        # The same name again: the newest rows win, whoever has them.
        database.wish(servers=2)
        database.ready(2)
        assert database.rows("db-0") == database.rows("db-1") == [1, 2, 3, 4]
