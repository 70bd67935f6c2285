"""notebooks/meter.py: what it says when a row is not acknowledged, asked of a real database that is really stuck."""

import json
from subprocess import getoutput

import pytest
from kit import ROOT
from kit.console import run

import lab
import meter

# A volume that is full when it is full, in memory; and a log of all changes, as replication needs one.
DATABASE = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "db", "labels": {"app": "db"}},
    "spec": {
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "fsGroup": 10002, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [
            {"name": "data", "emptyDir": {"medium": "Memory", "sizeLimit": "150Mi"}},
            {"name": "password", "secret": {"secretName": "db"}},
        ],
        "containers": [
            {
                "name": "mariadb",
                "image": "workshop/mariadb:1",
                "imagePullPolicy": "IfNotPresent",
                "args": ["mariadbd", "--log-bin=binlog", "--rpl-semi-sync-master-timeout=3600000"],
                "env": [
                    {"name": "MARIADB_DATABASE", "value": "votes"},
                    {"name": "MARIADB_USER", "value": "votes"},
                    {"name": "MARIADB_PASSWORD_FILE", "value": "/password/password"},
                ],
                "volumeMounts": [
                    {"name": "data", "mountPath": "/data"},
                    {"name": "password", "mountPath": "/password"},
                ],
                "readinessProbe": {"tcpSocket": {"port": 3306}, "periodSeconds": 1},
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    },
}


@pytest.fixture
def rows(started):
    """A meter whose rows reach one server, through a Service; the rows of a healthy one are acknowledged."""
    run(["kubectl", "create", "secret", "generic", "db", "--from-literal=password=demo"])
    run(["kubectl", "apply", "--filename=-"], input=json.dumps(DATABASE))
    run(["kubectl", "apply", "--filename", ROOT / "manifests/12-replicas-can-lie/client.yaml"])
    run(["kubectl", "expose", "pod", "db", "--port=3306"])
    run(["kubectl", "wait", "--for=condition=Ready", "pod/db", "pod/client", "--timeout=120s"])
    meter.ask("db", "CREATE TABLE ballots (number INT PRIMARY KEY)")
    rows = meter.Meter("db")
    assert rows.write(3) == 3
    return rows


def test_a_full_volume_is_named_and_when_there_is_room_the_meter_goes_on(rows, monkeypatch):
    monkeypatch.setattr(meter, "PATIENCE", 15)
    fill = "kubectl exec db -- sh -c 'dd if=/dev/zero of=/data/big bs=1M; df --output=avail /data'"
    assert getoutput(fill).endswith("\n    0")
    with pytest.raises(lab.Problem, match="(?s)^db did not .+Waiting for someone to free space\n.*volume is full.*df"):
        rows.write(100)
    kept = len(rows.acknowledged)
    assert 3 <= kept < 103

    getoutput("kubectl exec db -- rm /data/big")
    monkeypatch.setattr(meter, "PATIENCE", 120)
    assert rows.write(5) == kept + 5  # the server looks once a minute
    assert rows.lost("db") == 0


def test_a_replica_that_never_joins_is_named(rows, monkeypatch):
    monkeypatch.setattr(meter, "PATIENCE", 5)
    meter.ask("db", "SET GLOBAL rpl_semi_sync_master_enabled = 1")
    with pytest.raises(lab.Problem, match="^db did not .+ semi-sync ACK .+\nNo replica confirms"):
        rows.write(1)
    assert len(rows.acknowledged) == 3


def test_a_primary_that_is_gone_is_named_with_the_way_back(rows):
    getoutput("kubectl delete pod db")
    with pytest.raises(lab.Problem, match="^db did not acknowledge a row. .+\nIf its primary is gone once more, prom"):
        rows.write(1)
    assert len(rows.acknowledged) == 3
