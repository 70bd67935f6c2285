"""Leader election on a real Lease of a real cluster: who leads, for how long, and with which token. No mock."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier

import kubernetes
import pytest
from kit import LABEL, OWNER, ROOT, console, lessons
from kubernetes.client import ApiException, CoordinationV1Api, CoreV1Api
from urllib3.exceptions import HTTPError

LEADER = ROOT / "images/operator/leader.py"
SECONDS = 2  # leaseDurationSeconds


@pytest.fixture(scope="module")
def leader():
    """The module that candidates import."""
    spec = importlib.util.spec_from_file_location("leader", LEADER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def namespace(cluster):
    """A namespace of these tests' own; the client knows its cluster."""
    kubernetes.config.load_kube_config(config_file=str(cluster.kubeconfig), context=cluster.context)
    name = f"test-leader-{os.getpid()}"
    CoreV1Api().create_namespace({"metadata": {"name": name, "labels": {LABEL: str(OWNER)}}})
    yield name
    lessons.delete_namespaces(name)


@pytest.fixture
def lease(namespace):
    """A function that reads the Lease, which is new and free, and may change its fields before."""
    api, place = CoordinationV1Api(), ("office", namespace)
    spec = {"leaseDurationSeconds": SECONDS}
    api.create_namespaced_lease(namespace, {"metadata": {"name": "office"}, "spec": spec})

    def read(**changes):
        if changes:
            api.patch_namespaced_lease(*place, {"spec": changes})
        return api.read_namespaced_lease(*place).spec

    yield read
    api.delete_namespaced_lease(*place)


@pytest.fixture
def candidate(leader, namespace, lease):
    """Return a function that makes a candidate."""
    return lambda identity: leader.Candidate("office", namespace, identity)


def until(condition, seconds=10):
    """Return how many seconds it took until the condition was true."""
    began = time.monotonic()
    assert console.until(condition, seconds), f"not in {seconds} seconds"
    return time.monotonic() - began


def test_the_first_who_looks_leads(candidate, lease):
    anna, bert = candidate("anna"), candidate("bert")
    assert anna.term() is None
    assert anna.renew() and not bert.renew()
    assert (anna.term(), bert.term()) == (1, None)
    spec = lease()
    assert (spec.holder_identity, spec.lease_transitions) == ("anna", 1)
    assert spec.acquire_time == spec.renew_time


def test_a_leader_that_renews_leads_on_with_the_same_token(candidate, lease):
    anna, bert = candidate("anna"), candidate("bert")
    assert anna.renew()
    began = time.monotonic()
    while time.monotonic() - began < 2 * SECONDS:
        assert anna.renew() and not bert.renew()
        assert (anna.term(), bert.term()) == (1, None)
        time.sleep(0.2)
    spec = lease()
    assert spec.lease_transitions == 1 and spec.renew_time - spec.acquire_time > timedelta(seconds=SECONDS)


def test_a_silent_leader_is_replaced_when_its_time_is_over_and_not_before(candidate, lease):
    leads, waits = candidate("anna"), candidate("bert")
    assert leads.renew() and not waits.renew()
    for term in (2, 3, 4):
        until(waits.renew)
        assert leads.term() is None  # it knew before anybody else led
        assert waits.term() == term
        assert not leads.renew() and leads.term() is None
        leads, waits = waits, leads
    spec = lease()
    assert (spec.holder_identity, spec.lease_transitions) == ("bert", 4)
    assert spec.acquire_time > datetime.now(UTC) - timedelta(seconds=30)


def test_of_many_that_are_equally_quick_one_is_elected(candidate, lease):
    crowd = [candidate(f"candidate-{number}") for number in range(5)]
    start = Barrier(len(crowd))

    def look(each):
        start.wait()
        return each.renew()

    with ThreadPoolExecutor(len(crowd)) as pool:
        for turn in range(1, 6):
            elected = list(pool.map(look, crowd))
            assert sum(elected) == 1
            assert lease().holder_identity == f"candidate-{elected.index(True)}"
            assert lease().lease_transitions == turn
            lease(holderIdentity="")  # who leads gives up


def test_a_lease_that_is_given_up_is_taken_at_once(candidate, lease):
    assert candidate("anna").renew()
    lease(holderIdentity=None)
    bert = candidate("bert")
    assert bert.renew() and bert.term() == 2


def test_a_new_process_of_the_same_name_is_another_candidate(candidate, lease):
    before, after = candidate("anna"), candidate("anna")
    assert before.renew() and not after.renew()
    assert until(after.renew) > SECONDS / 2
    assert after.term() == 2 and lease().holder_identity == "anna"
    assert not before.renew() and before.term() is None


@pytest.mark.parametrize("hours", [-1, 1])
def test_no_other_machines_clock_is_believed(candidate, lease, hours):
    anna, bert = candidate("anna"), candidate("bert")
    assert anna.renew()
    lease(renewTime=(datetime.now(UTC) + timedelta(hours=hours)).isoformat(timespec="microseconds"))
    assert not bert.renew()  # it sees the Lease for the first time: it waits the whole time
    assert until(bert.renew) > SECONDS / 2
    assert bert.term() == 2


def test_the_leases_own_setting_counts(candidate, lease):
    lease(leaseDurationSeconds=1)
    anna, bert = candidate("anna"), candidate("bert")
    assert anna.renew() and not bert.renew()
    assert until(bert.renew) < 10 and anna.term() is None
    lease(leaseDurationSeconds=60)
    assert bert.renew()
    time.sleep(1.5)
    assert bert.term() == 2 and not anna.renew()


def test_without_the_api_server_a_term_ends_by_itself(candidate, lease):
    anna = candidate("anna")
    assert anna.renew() and anna.term() == 1
    nobody = kubernetes.client.Configuration(host="http://127.0.0.1:1")
    anna._api = CoordinationV1Api(kubernetes.client.ApiClient(nobody))
    with pytest.raises(HTTPError):
        anna.renew()
    until(lambda: anna.term() is None)


def test_a_lease_that_is_missing_is_not_made(leader, namespace):
    with pytest.raises(ApiException, match="404"):
        leader.Candidate("nowhere", namespace, "anna").renew()


PROGRAM = """
import sys, time, kubernetes
from leader import Candidate
kubernetes.config.load_kube_config(config_file=sys.argv[1], context=sys.argv[2])
candidate = Candidate(sys.argv[4], sys.argv[3], "anna")
for token in candidate.terms():
    print("leads", token, flush=True)
    while candidate.term() == token:
        time.sleep(0.02)
    print("led", token, flush=True)
"""


@pytest.fixture
def process(cluster, namespace):
    """Return a function that starts a process which stands for election, and reads on what it says until a text."""
    started = []

    def start(lease):
        place = [str(cluster.kubeconfig), cluster.context, namespace, lease]
        environment = os.environ | {"PYTHONPATH": str(LEADER.parent), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", PROGRAM, *place]
        made = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        started.append(made)
        return made, lambda text: next(line for line in made.stdout if line == text + "\n")

    yield start
    for each in started:
        each.kill()
        each.communicate()


def test_a_process_that_slept_knows_that_its_term_is_over(candidate, process):
    anna, said = process("office")
    assert said("leads 1")
    bert = candidate("bert")
    began = time.monotonic()
    while time.monotonic() - began < 1.5 * SECONDS:
        assert not bert.renew()  # it renews by itself
    os.kill(anna.pid, signal.SIGSTOP)
    until(bert.renew)
    os.kill(anna.pid, signal.SIGCONT)
    assert said("led 1")
    until(lambda: bert.term() is None)
    assert said("leads 3")


def test_a_campaign_outlives_a_refusal(process, namespace):
    _, said = process("later")
    assert said("The Lease can't be had: Not Found")
    body = {"metadata": {"name": "later"}, "spec": {"leaseDurationSeconds": SECONDS}}
    CoordinationV1Api().create_namespaced_lease(namespace, body)
    assert said("leads 1")
