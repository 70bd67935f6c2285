"""An operator. Whoever makes a VotesDatabase gets servers of MariaDB: one takes writes, the others copy it.

Once a second it compares what is wanted with what there is, and does what is missing. It keeps nothing in its memory:
all that it must know is written on the Pods, so it can be stopped and started at any time. It never touches a claim.
"""

import os
import re
from string import Template

import kopf
import kubernetes
import yaml
from kubernetes.client import ApiClient, ApiException, AppsV1Api, CoreV1Api
from kubernetes.stream import stream

KIND = "runbook.workshop.example", "v1", "votesdatabases"
NOTE = "runbook.workshop.example/note"  # on a Pod: which of its containers was told what

OWNED = """
apiVersion: v1
kind: Service
metadata: {name: $name}
spec:
  selector: {votesdatabase: $name, role: primary}
  ports: [{port: 3306}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: $name}
spec:
  replicas: $replicas
  podManagementPolicy: Parallel
  selector: {matchLabels: {votesdatabase: $name}}
  template:
    metadata: {labels: {votesdatabase: $name}}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: mariadb
          image: workshop/mariadb:1
          imagePullPolicy: IfNotPresent
          args: [mariadbd, --read-only, "--server-id=10$$(NUMBER)", --log-bin=binlog, --log-slave-updates,
                 --gtid-strict-mode, --slave-net-timeout=1, --rpl-semi-sync-slave-enabled,
                 --rpl-semi-sync-master-timeout=4294967295, --rpl-semi-sync-master-wait-point=AFTER_SYNC]
          env:
            - {name: NUMBER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}}
            - {name: MARIADB_DATABASE, value: votes}
            - {name: MARIADB_USER, value: votes}
            - {name: MARIADB_PASSWORD_FILE, value: /password/password}
          readinessProbe: {tcpSocket: {port: 3306}, periodSeconds: 1, timeoutSeconds: 5}
          volumeMounts: [{name: data, mountPath: /data}, {name: password, mountPath: /password}]
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      volumes: [{name: password, secret: {secretName: $secret}}]
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 300Mi}}}
"""

# The runbook. A server starts as one that only reads, so nobody takes writes who was not told to.
FENCE = """SET GLOBAL read_only = 1;
  DO MASTER_GTID_WAIT((SELECT Gtid_IO_Pos FROM information_schema.SLAVE_STATUS), 10); SELECT @@gtid_binlog_pos"""
LOGIN = """SET sql_log_bin = 0; CREATE USER IF NOT EXISTS replication IDENTIFIED BY '$(cat /password/password)';
  GRANT REPLICATION SLAVE ON *.* TO replication; SET sql_log_bin = 1; STOP SLAVE;"""
PROMOTE = "RESET SLAVE ALL; SET GLOBAL rpl_semi_sync_master_enabled = {more}; SET GLOBAL read_only = 0"
FOLLOW = """SET GLOBAL read_only = 1; SET GLOBAL rpl_semi_sync_master_enabled = 0;
  CHANGE MASTER TO MASTER_HOST = '{host}', MASTER_USER = 'replication', MASTER_PASSWORD = '$(cat /password/password)',
    MASTER_CONNECT_RETRY = 1, MASTER_USE_GTID = slave_pos, MASTER_DEMOTE_TO_SLAVE = 1;
  START SLAVE; SELECT MASTER_GTID_WAIT('{position}', 10)"""

candidate = None  # for the lead; an operator that has no Lease is alone


@kopf.on.startup()
def begin(settings, **_):
    """Wait for the lead, if there is a Lease."""
    global candidate
    settings.scanning.disabled = True  # to look for new kinds would take rights in the whole cluster
    settings.posting.enabled = False  # the status says it; Events would take one right more
    if "LEASE" in os.environ:
        from leader import Candidate  # of lesson 11

        kubernetes.config.load_incluster_config()
        candidate = Candidate(os.environ["LEASE"], os.environ["NAMESPACE"], os.environ["HOSTNAME"])
        next(candidate.terms())


def lead():
    """End if somebody else leads now; the next container of this Pod is a candidate again."""
    if candidate and not candidate.term():
        os._exit(1)


@kopf.timer(*KIND, interval=1, backoff=1)
def reconcile(name, namespace, spec, meta, status, patch, logger, **_):
    """Make what is there a bit more like what is wanted, and say how far it is."""
    lead()
    new = {"observedGeneration": meta["generation"], "primary": None, "ready": 0}
    try:
        new["primary"], new["ready"] = step(name, namespace, spec, logger)
        message = f"{new['ready']} of {spec['servers']} servers do as they were told."
    except Waiting as reason:
        message = str(reason)
    except ApiException as error:
        why = re.search(r"cannot \w+ resource \S+|\S+ is forbidden", f"{error.reason} {error.body}".replace("\\", ""))
        message = f"The API server says: {why[0] if why else str(error.reason)[:40]}."
    new["conditions"] = [{"type": "Ready", "status": str(new["ready"] == spec["servers"]), "message": message}]
    if any(status.get(key) != value for key, value in new.items()):
        patch.status.update(new)
        logger.info(message)


@kopf.on.delete(*KIND, timeout=60, backoff=1)
def retire(name, namespace, logger, **_):
    """Take no more writes, and wait a minute at most until all copies have the last one; then the finalizer goes."""
    lead()
    pods = pods_of(name, namespace)
    for primary in filter(takes_writes, pods):
        position = sql(primary, FENCE)
        copies = [pod for pod in pods if told(pod) == f"replica of {primary.status.pod_ip}"]
        for pod in copies:
            if sql(pod, f"SELECT MASTER_GTID_WAIT('{position}', 10)") != "0":
                raise Waiting(f"{pod.metadata.name} lacks rows.")
        note(primary, None, None)
        logger.info(f"{primary.metadata.name} takes no more writes.")


def step(name, namespace, spec, logger):
    """Do what is missing; returns the primary's name, and how many servers do as they were told."""
    servers, pods = spec["servers"], pods_of(name, namespace)
    primary = next(filter(takes_writes, pods), None)
    stays = primary and number(primary) < servers
    # While nobody who stays takes writes, no server is taken away.
    replicas = servers if stays else max([servers, *(number(pod) + 1 for pod in pods)])
    apply(Template(OWNED).substitute(name=name, replicas=replicas, secret=spec["secret"]))

    primary = primary if stays else elect(pods, replicas, servers)
    if told(primary) != (what := f"primary of {servers}"):
        tell(primary, what, PROMOTE.format(more=int(servers > 1)))
        logger.info(f"{primary.metadata.name} takes writes.")
    if replicas > servers:
        raise Waiting(f"Too many servers run: {replicas}, not {servers}.")

    copies = [pod for pod in pods if ready(pod) and number(pod) < servers and pod is not primary]
    host = primary.status.pod_ip
    for pod in copies:
        if told(pod) != (what := f"replica of {host}"):
            position = sql(primary, "SELECT @@gtid_binlog_pos")
            tell(pod, what, FOLLOW.format(host=host, position=position))
            logger.info(f"{pod.metadata.name} follows {primary.metadata.name}.")
    return primary.metadata.name, 1 + len(copies)


def elect(pods, expected, servers):
    """The server that has received the most; whoever took writes so far leaves the Service first."""
    running = list(filter(ready, pods))
    copies = [pod for pod in running if told(pod).startswith("replica")]
    # A row is acknowledged when two servers have it. So one may be missing: the one that took writes.
    voters = running if len(running) == expected else copies
    if len(voters) < max(expected - 1, 1):
        raise Waiting(f"Nobody takes writes: {len(running)} of {expected} servers run, {len(copies)} of them copies.")
    for pod in pods:
        if pod.metadata.labels.get("role") == "primary":
            note(pod, None, None)
    received = [(int(sql(pod, FENCE).split("-")[-1] or 0), pod) for pod in voters]
    newest = max(count for count, _ in received)
    for count, pod in received:
        if count == newest and number(pod) < servers:
            return pod
    raise Waiting("Nobody takes writes: the newest rows are on a server that is to go.")


def tell(pod, what, command):
    """Have a server take its role, and note it on its Pod."""
    if sql(pod, LOGIN + command) not in ("", "0"):
        raise Waiting(f"{pod.metadata.name} can't become a {what}.")
    note(pod, what.split()[0], f"{pod.status.container_statuses[0].container_id} {what}")


# ── The cluster ───────────────────────────────────────────────────────────────────────────────────────────────────


class Waiting(Exception):
    """Nothing is wrong: what comes next can't be done yet."""


def apply(objects):
    """Have the API server make the objects, or make them so again; they go with the resource that is being handled."""
    change = {"Service": CoreV1Api().patch_namespaced_service, "StatefulSet": AppsV1Api().patch_namespaced_stateful_set}
    for each in yaml.safe_load_all(objects):
        kopf.adopt(each)  # its owner, and its namespace
        change[each["kind"]](each["metadata"]["name"], each["metadata"]["namespace"], each, force=True,
                             field_manager="votesdatabase", _content_type="application/apply-patch+yaml")  # fmt: skip


def pods_of(name, namespace):
    """The Pods of a VotesDatabase, in the order of their names."""
    return CoreV1Api().list_namespaced_pod(namespace, label_selector=f"votesdatabase={name}").items


def number(pod):
    """The number at the end of the name that a StatefulSet gives."""
    return int(pod.metadata.name.rpartition("-")[2])


def ready(pod):
    """Whether the server answers, and is to go on doing so."""
    conditions = pod.status.conditions or []
    return not pod.metadata.deletion_timestamp and any(c.type == "Ready" and c.status == "True" for c in conditions)


def told(pod):
    """What the server was told to be, if the container that was told so is still the one that runs."""
    container, _, what = (pod.metadata.annotations or {}).get(NOTE, "").partition(" ")
    return what if ready(pod) and container == pod.status.container_statuses[0].container_id else ""


def takes_writes(pod):
    """Whether the server was told to take writes."""
    return told(pod).startswith("primary")


def note(pod, role, text):
    """Write on the Pod what its server was told; by its role the Service finds it."""
    change = {"metadata": {"labels": {"role": role}, "annotations": {NOTE: text}}}
    CoreV1Api().patch_namespaced_pod(pod.metadata.name, pod.metadata.namespace, change)


def sql(pod, statements):
    """What a server answers, asked inside its Pod: so the operator needs neither its password nor a way to its port."""
    client = stream(CoreV1Api(ApiClient()).connect_get_namespaced_pod_exec, pod.metadata.name, pod.metadata.namespace,
                    command=["sh", "-c", f'exec mariadb --skip-column-names --execute="{statements}"'],
                    stdout=True, stderr=True, _preload_content=False)  # fmt: skip
    client.run_forever(timeout=60)
    failed, answer = client.returncode != 0, client.read_all().strip()
    if failed:
        raise Waiting(f"{pod.metadata.name} says: {answer}")
    return answer
