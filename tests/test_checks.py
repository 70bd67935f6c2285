"""The checks of the exercises, taken out of the notebooks: none is content with the untouched lesson or a wrong fix."""

import itertools
import json
import os
import shlex
import subprocess

import nbformat
import pytest
from kit import LABEL, OWNER, ROOT, lessons

# Some try ten things, each a rollout, a dump or a repair, while the machine tests another lesson beside them.
pytestmark = [pytest.mark.beside, pytest.mark.timeout(900)]

PATCH = "kubectl patch deployment votes --patch '%s' && kubectl rollout status deployment/votes --timeout=60s"


def bash(script):
    """Run what a %%bash cell would run; its failure is the test's."""
    result = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


class Exercise:
    """A lesson's notebook, begun in a namespace of the test's own, with the manifests that its exercise builds on."""

    def __init__(self, capsys, number, namespace, *manifests):
        path = lessons.notebooks()[number]
        self.capsys = capsys
        self.cells = nbformat.read(path, as_version=4).cells
        self.names = {}
        os.chdir(path.parent)
        (start,) = [cell.source for cell in self.cells if "lab.start(" in cell.source]
        self.run(start.replace(path.stem, namespace))
        for manifest in manifests:
            bash(f"kubectl apply --filename=../manifests/{path.stem}/{manifest}.yaml")

    def tagged(self, tag):
        """The source of the cell with the tag: stub, check or solution."""
        (source,) = [cell.source for cell in self.cells if tag in cell.metadata.get("tags", [])]
        return source

    def containing(self, text):
        """The source of the code cell with the text."""
        (source,) = [cell.source for cell in self.cells if cell.cell_type == "code" and text in cell.source]
        return source

    def run(self, source):
        """Run a cell."""
        magic, _, script = source.partition("\n")
        if magic.startswith("%%bash"):
            bash(script)
        else:
            exec(compile(source, "a cell", "exec"), self.names)

    def verdict(self, tag="check"):
        """Run the cell that checks; what it thinks of each claim."""
        self.capsys.readouterr()  # what was printed before is no verdict
        self.run(self.tagged(tag))
        return "".join(line[0] for line in self.capsys.readouterr().out.splitlines() if line[0] in "✓✗")


@pytest.fixture
def exercise(cluster, capsys, monkeypatch):
    """Return a function that gives the exercise of a lesson; its namespaces are removed afterwards."""
    before, namespace, umask = dict(os.environ), f"test-checks-{os.getpid()}", os.umask(0o077)
    os.umask(umask)
    monkeypatch.chdir(ROOT)
    with lessons.turn(shared=True):
        yield lambda number, *manifests: Exercise(capsys, number, namespace, *manifests)
        os.environ.clear()
        os.environ.update(before)
        os.umask(umask)
        lessons.delete_namespaces(namespace)


def test_01_a_rollout_without_loss(exercise):
    lesson = exercise("01", "service", "exercise")
    lesson.run(lesson.tagged("stub"))
    assert lesson.verdict() == "✓✓✗"
    lesson.run(lesson.tagged("solution"))
    assert lesson.verdict() == "✓✓✓"

    # The wrong shortcuts, tried on what is right in everything else:
    bash(PATCH % '{"spec": {"replicas": 1}}')
    assert lesson.verdict().startswith("✗✓")
    bash(PATCH % '{"spec": {"replicas": 3, "strategy": {"type": "Recreate", "rollingUpdate": null}}}')
    assert lesson.verdict() == "✓✗✗"


def test_03_votes_that_outlive_their_pods(exercise):
    lesson = exercise("03", "services", "visitor", "exercise-claim", "exercise")
    bash("kubectl wait --for=condition=Ready pod/visitor && kubectl rollout status deployment/votes --timeout=60s")
    lesson.run(lesson.tagged("stub"))
    assert lesson.verdict() == "✓✗✗"

    # Sticky sessions: each visitor sees one total, and it is not the other's.
    bash('kubectl patch service votes --patch \'{"spec": {"sessionAffinity": "ClientIP"}}\'')
    assert lesson.verdict() == "✓✗✗"
    lesson.run(lesson.tagged("solution"))
    assert lesson.verdict() == "✓✓✓"

    # The other wrong shortcuts, tried on what is right in everything else:
    bash(PATCH % '{"spec": {"replicas": 1}}')
    assert lesson.verdict() == "✗✓✓"
    volumes = '[{"name": "data", "persistentVolumeClaim": null, "emptyDir": {}}]'
    bash(PATCH % f'{{"spec": {{"replicas": 2, "template": {{"spec": {{"volumes": {volumes}}}}}}}}}')
    assert lesson.verdict() == "✓✗✗"
    # Nobody can vote: that all Pods agree on nothing is no solution.
    lesson.run(lesson.tagged("solution"))
    bash("kubectl exec deployment/votes -- rm /data/votes.json && kubectl delete service votes")
    assert lesson.verdict() == "✓✗✗"


def test_03_five_kinds_of_state(exercise, capsys):
    lesson = exercise("03")
    lesson.run(lesson.tagged("sort-stub"))
    lesson.run(lesson.tagged("sort-check"))
    hints = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert len(set(hints)) == 10
    lesson.names["mine"] = dict.fromkeys(lesson.names["mine"], "abcdefghij")
    assert lesson.verdict("sort-check") == "✗" * 10
    lesson.run(lesson.tagged("sort-solution"))
    assert lesson.verdict("sort-check") == "✓" * 10
    lesson.names["mine"] |= {"configuration": "ab", "secrets": "gf"}
    assert lesson.verdict("sort-check") == "✓✗✓✓✓✓✗✓✓✓"


def test_04_what_is_left_of_an_application(exercise, cluster):
    lesson = exercise("04", "crd")
    definition = "customresourcedefinition/ballots.get-all.workshop.example"
    bash(f"kubectl label {definition} {LABEL}={OWNER} && kubectl wait --for=condition=Established {definition}")
    try:
        for cell in lesson.cells:
            if "def ballot(" in cell.source or "def everything(" in cell.source:
                lesson.run(cell.source)
        bash("kubectl apply --filename=../manifests/04-get-all-does-not/exercise.yaml")
        stub = lesson.tagged("stub")
        lesson.run(stub)  # it says `kubectl get all`, the wrong shortcut
        assert lesson.verdict() == "✗✓"

        # Kinds that one thinks of, and everything there is, with a label or without:
        for wrong, expected in [("get configmap,secret,pvc,ingress", "✗✓"), ("everything #", "✓✗")]:
            lesson.run(stub.replace("get all", wrong))
            assert lesson.verdict() == expected

        lesson.run(lesson.tagged("solution"))
        assert lesson.verdict() == "✓✓"
    finally:
        cluster.kubectl("delete", definition)


def test_06_an_intern_who_runs_pods_and_reads_no_secret(exercise):
    lesson = exercise("06", "services", "database", "votes-bert", "intern")
    bash("""
        for user in anna bert; do kubectl create secret generic $user --from-literal=password=demo-4; done
        kubectl rollout status deployment/database --timeout=120s
        mariadb="kubectl exec deployment/database -- mariadb"
        $mariadb --execute="CREATE USER bert IDENTIFIED BY 'demo-4'; GRANT ALL ON votes.* TO bert"
        kubectl create namespace "$NAMESPACE-intern"
        kubectl label namespace "$NAMESPACE-intern" kubernetes-and-state.owner=$UID
        kubectl rollout status deployment/votes --timeout=60s
    """)
    lesson.run(lesson.containing("def may("))
    lesson.run(lesson.tagged("stub"))
    assert lesson.verdict() == "✓✓✗"

    # The wrong shortcuts: all is forbidden, or only the obvious; the intern's Pods come by way of a Deployment.
    bash("kubectl delete rolebinding intern")
    assert lesson.verdict() == "✓✗✓"
    bash("kubectl create role workloads --verb=create,get --resource=deployments,pods/log")
    bash('kubectl create rolebinding workloads --role=workloads --serviceaccount="$NAMESPACE:intern"')
    assert lesson.verdict() == "✓✗✗"
    bash("kubectl delete rolebinding workloads")

    lesson.run(lesson.tagged("solution"))
    assert lesson.verdict() == "✓✓✓"

    # On what is right in everything else: one more right, or the password carried to the other side, in either kind.
    for right in ("--verb=create --resource=pods/exec", "--verb=get --resource=secrets --resource-name=bert"):
        bash(f'kubectl create role more {right} && '
             'kubectl create rolebinding more --role=more --serviceaccount="$NAMESPACE:intern"')  # fmt: skip
        assert lesson.verdict() == "✓✓✗"
        bash("kubectl delete role,rolebinding more")
    for kind in ("secret generic", "configmap"):
        bash(f'kubectl create {kind} copy --namespace="$NAMESPACE-intern" --from-literal=for-you=demo-4')
        assert lesson.verdict() == "✓✓✗"
        bash('kubectl delete secret,configmap copy --namespace="$NAMESPACE-intern" --ignore-not-found')
    assert lesson.verdict() == "✓✓✓"

    # The intern can't read what is not there, and nor can the application.
    bash("kubectl delete secret bert")
    assert lesson.verdict() == "✗✓✓"


def test_00_the_name_of_the_default_class(exercise):
    lesson = exercise("00", "claim")
    lesson.run(lesson.tagged("stub"))
    assert lesson.verdict() == "✗"
    lesson.names["answer_of_yours"] = "fast"
    assert lesson.verdict() == "✗"
    lesson.run(lesson.tagged("solution"))
    assert lesson.verdict() == "✓"


def test_02_a_route_with_its_port_and_its_secret(exercise):
    lesson = exercise("02", "base/deployment", "base/service")
    bash("kubectl rollout status deployment/votes --timeout=60s")
    for text in ("def issue(", "def visit(", 'issue("exercise", '):
        lesson.run(lesson.containing(text))
    lesson.run(lesson.tagged("begin"))
    lesson.run(lesson.tagged("stub"))
    assert lesson.verdict() == "✗✗✓✓"

    turns = itertools.count()

    def mark(port=80):
        """A host of its own, and the patch that adds a rule for it: it answers when Traefik has heard of the change."""
        host = f"change-{next(turns)}.example"
        path = {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "votes", "port": {"number": port}}}}
        return host, [{"op": "add", "path": "/spec/rules/-", "value": {"host": host, "http": {"paths": [path]}}}]

    def after(*changes, marked=None):
        """What the check thinks of the Ingress of the exercise, changed by JSON patches, once Traefik follows."""
        host, rule = marked or mark()
        bash("kubectl replace --filename=../manifests/02-ingress-ends-tls/exercise.yaml")
        bash(f"kubectl patch ingress exercise --type=json --patch='{json.dumps([*changes, *rule])}'")
        lesson.run(f"lab.eventually(lambda: visit({host!r}, trust=None)[0] == '200')")
        return lesson.verdict()

    # The wrong shortcuts: the port only, so that no more than --insecure works; no TLS at all.
    port = {"op": "replace", "path": "/spec/rules/0/http/paths/0/backend/service/port/number", "value": 80}
    assert after(port) == "✓✗✓✓"
    assert after(port, {"op": "remove", "path": "/spec/tls"}) == "✓✗✓✓"

    lesson.run(lesson.tagged("solution"))
    assert lesson.verdict() == "✓✓✓✓"
    assert after() == "✗✓✓✓"

    # Now the Secret is there: a default backend answers everybody; another port of the Service is other people's loss.
    backend = {"service": {"name": "votes", "port": {"number": 80}}}
    everybody = {"op": "add", "path": "/spec/defaultBackend", "value": backend}
    no_rules = {"op": "remove", "path": "/spec/rules"}
    assert after(no_rules, everybody, marked=("nobody.example", [])) == "✓✓✗✓"
    other_port = '[{"op": "replace", "path": "/spec/ports/0/port", "value": 8080}]'
    bash(f"kubectl patch service votes --type=json --patch='{other_port}'")
    assert after(marked=mark(8080)) == "✓✓✓✗"


def test_05_one_image_two_environments(exercise):
    lesson = exercise("05", "configuration")
    lesson.run(lesson.containing("/exercise/test/kustomization.yaml\nkubectl"))
    lesson.run(lesson.containing("TemporaryDirectory"))
    lesson.run(lesson.tagged("stub"))
    assert lesson.verdict() == "✗✓✓✗"
    lesson.run(lesson.tagged("solution"))
    assert lesson.verdict() == "✓✓✓✓"

    # An image for each environment, on what is right in everything else.
    bash("kubectl set image deployment/test-votes votes=workshop/votes:test")
    assert lesson.verdict() == "✓✗✓✓"

    def after(told):
        """What the check thinks when each environment's container is told its words in this way."""
        for name, words in ("test", "ham,eggs"), ("prod", "tea,coffee"):
            bash(f"kubectl apply --kustomize=../manifests/05-configuration-lives-outside/exercise/{name}")
            container = "{name: votes, " + told.replace("NAME", name).replace("WORDS", words) + "}"
            patch = "spec: {template: {spec: {containers: [" + container + "]}}}"
            bash(f"kubectl patch deployment {name}-votes --patch '{patch}'")
            bash(f"kubectl rollout status deployment/{name}-votes --timeout=60s")
        return lesson.verdict()

    # The values in the Deployments; one ConfigMap for both, with a key for each.
    assert after('env: [{name: VOTES_CHOICES, value: "WORDS"}]') == "✓✓✗✗"
    bash("kubectl create configmap both --from-literal=test=ham,eggs --from-literal=prod=tea,coffee")
    one = "{configMapKeyRef: {name: both, key: NAME}}"
    assert after("env: [{name: VOTES_CHOICES, value: null, valueFrom: " + one + "}]") == "✓✓✓✗"

    # Two ConfigMaps that are right, and Pods that have not been started since.
    bash("kubectl create configmap test-map --from-literal=VOTES_CHOICES=spam")
    bash("kubectl create configmap prod-map --from-literal=VOTES_CHOICES=spam")
    assert after("env: null, envFrom: [{configMapRef: {name: NAME-map}}]") == "✗✓✓✗"
    for name, words in ("test", "ham,eggs"), ("prod", "tea,coffee"):
        bash(f"kubectl create configmap {name}-map --from-literal=VOTES_CHOICES={words} --dry-run=client --output=yaml"
             " | kubectl replace --filename=-")  # fmt: skip
    assert lesson.verdict() == "✗✓✓✓"


def test_07_uploads_on_two_nodes(exercise, cluster):
    lesson = exercise("07", "services", "visitor")
    bash("kubectl wait --for=condition=Ready --timeout=90s pod/visitor")
    bash("kubectl delete persistentvolume 07-uploads --ignore-not-found")
    try:
        lesson.run(lesson.containing("mkdir"))
        lesson.run(lesson.tagged("begin"))
        lesson.run(lesson.tagged("stub"))
        assert lesson.verdict() == "✓✗✗✗"

        def after(volume, spec="", wait="kubectl rollout status deployment/uploads --timeout=90s"):
            """What the check thinks when the uploads lie in this volume."""
            bash("kubectl replace --filename=../manifests/07-volumes-outlive-containers/exercise.yaml")
            volumes = f'[{{"name": "uploads", "emptyDir": null, {volume}}}]'
            patch = f'{{"spec": {{"template": {{"spec": {{"volumes": {volumes}{spec}}}}}}}}}'
            bash(f"kubectl patch deployment uploads --patch='{patch}' && {wait}")
            return lesson.verdict()

        # Sticky sessions: each visitor finds what he uploaded, until another one asks.
        bash('kubectl patch service uploads --patch \'{"spec": {"sessionAffinity": "ClientIP"}}\'')
        assert lesson.verdict() == "✓✗✗✗"
        # A claim of the default class; then both servers forced to where it is.
        bash("kubectl apply --filename=../manifests/07-volumes-outlive-containers/claims.yaml")
        once = '"persistentVolumeClaim": {"claimName": "once"}'
        one = "kubectl wait --for=condition=Available=False --timeout=90s deployment/uploads"
        assert after(once, wait=one) == "✗✗✗✗"
        assert after(once, ', "topologySpreadConstraints": null') == "✗✓✓✗"
        # The shared directory without a claim, where Pods may take what they like.
        bash("kubectl label --overwrite namespace $NAMESPACE pod-security.kubernetes.io/enforce=privileged")
        assert after('"hostPath": {"path": "/shared/07-uploads"}') == "✓✓✓✗"

        bash("kubectl replace --filename=../manifests/07-volumes-outlive-containers/exercise.yaml")
        lesson.run(lesson.tagged("solution"))
        assert lesson.verdict() == "✓✓✓✓"
        bash(PATCH.replace("votes", "uploads") % '{"spec": {"replicas": 1}}')
        assert lesson.verdict() == "✗✗✗✓"
    finally:
        bash("kubectl delete deployment,persistentvolumeclaim --all && kubectl delete persistentvolume 07-uploads")
        bash(f"docker exec {cluster.name}-worker sh -c 'rm -rf /shared/07-*'")


def test_08_the_line_of_a_deleted_claim(exercise, cluster):
    lesson = exercise("08", "class")
    bash(f"kubectl label storageclass 08-keep {LABEL}={OWNER}")
    lesson.run(lesson.containing("def let_go("))
    manifests = "../manifests/08-claims-outlive-pods"

    def again():
        """Give the Deployment a new, empty claim; those before it were let go of properly."""
        bash(f"""
            kubectl delete deployment,persistentvolumeclaim kept --ignore-not-found
            kubectl wait --for=delete pod --selector=app=kept
            kubectl apply --filename={manifests}/kept-claim.yaml --filename={manifests}/kept.yaml
            kubectl rollout status deployment/kept""")

    try:
        again()
        lesson.run(lesson.containing("def live("))
        lesson.run("rows = {'kept': rows['kept']}")
        bash('kubectl exec deployment/kept -- sh -c "echo $LINE > /data/line"')
        lesson.run(lesson.containing("first = volume_of("))
        again()
        lesson.run(lesson.tagged("begin"))
        lesson.run(lesson.tagged("stub"))
        assert lesson.verdict() == "✗✗✓"  # on the new, empty claim, which is a wrong shortcut itself
        lesson.run(lesson.tagged("solution"))
        assert lesson.verdict() == "✓✓✓"

        # The finalizer is taken out by hand; all else is done as it should be.
        volume = lesson.names["first"].metadata.name
        bash(f"""
            kubectl delete persistentvolumeclaim kept --wait=false
            kubectl patch persistentvolumeclaim kept --patch '{{"metadata": {{"finalizers": null}}}}'
            kubectl wait --for=jsonpath='{{.status.phase}}'=Released persistentvolume/{volume}
            kubectl patch persistentvolume {volume} --patch '{{"spec": {{"claimRef": {{"uid": null}}}}}}'
            kubectl apply --filename={manifests}/kept-claim.yaml
            kubectl delete pod --selector=app=kept
            kubectl rollout status deployment/kept""")
        lesson.run("lab.eventually(lambda: live('kept'))")
        assert lesson.verdict() == "✓✓✗"

        # The first volume is made to name the new claim, which has another; then the line is copied by hand.
        again()
        lesson.run(lesson.tagged("begin"))
        lesson.run("uid = claims(live('kept'))[0].metadata.uid")
        change = f'{{"spec": {{"claimRef": {{"uid": "{lesson.names["uid"]}"}}}}}}'
        bash(f"kubectl patch persistentvolume {volume} --patch '{change}'")
        assert lesson.verdict() == "✗✗✓"
        bash('kubectl exec deployment/kept -- sh -c "echo $LINE > /data/line"')
        assert lesson.verdict() == "✓✗✓"
    finally:
        bash("kubectl delete deployment,persistentvolumeclaim --all")
        lesson.run("let_go()")
        bash("kubectl delete storageclass 08-keep")


def test_09_a_rollout_that_ends(exercise):
    lesson = exercise("09", "exercise-claim", "archive")
    bash("kubectl rollout status deployment/archive --timeout=120s")
    for text in ("('scarf'", "begun = archived()"):
        lesson.run(lesson.containing(text))
    lesson.run(lesson.tagged("stub"))
    assert lesson.verdict() == "✓✗✓"

    def after(patch):
        """What the check thinks of the Deployment with a change."""
        bash(f"kubectl patch deployment archive --patch '{patch}'")
        return lesson.verdict()

    # Both Pods deleted: chance may let the new one in, once. The default in so many words. No rollout at all.
    ready = "kubectl wait --for=jsonpath='{.status.availableReplicas}'=1 deployment/archive --timeout=60s"
    bash(f"kubectl delete pod --selector=app=archive && {ready}")
    assert lesson.verdict() == "✓✗✓"
    assert after('{"spec": {"strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}}') == "✓✗✓"
    assert after('{"spec": {"paused": true}}') == "✓✗✓"
    bash("kubectl rollout resume deployment/archive")

    lesson.run(lesson.tagged("solution"))
    assert lesson.verdict() == "✓✓✓"
    # The old Pod first, without a wait until it is gone: the claim has the new one wait.
    in_turn = '{"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}'
    assert after(f'{{"spec": {{"strategy": {in_turn}}}}}') == "✓✓✓"

    # The wrong shortcuts, tried on what is right in everything else: two writers, no lock, no claim.
    lesson.run(lesson.tagged("solution"))
    assert after('{"spec": {"replicas": 2}}').startswith("✗✗")
    lesson.run(lesson.tagged("solution"))
    bash("kubectl exec deployment/archive -- sh -c 'cd /data/mariadb; cp ibdata1 new; mv new ibdata1'")
    assert lesson.verdict() == "✓✓✗"
    volumes = '[{"name": "data", "persistentVolumeClaim": null, "emptyDir": {}}]'
    assert after(f'{{"spec": {{"template": {{"spec": {{"volumes": {volumes}}}}}}}}}') == "✗✓✗"


def test_10_a_canary_that_is_taken_back(exercise):
    lesson = exercise("10", "services", "visitor", "votes")
    bash("kubectl rollout status statefulset/votes --timeout=120s && kubectl wait --for=condition=Ready pod/visitor")
    always = '{"spec": {"publishNotReadyAddresses": true}}'
    bash(f"kubectl patch service votes --patch '{always}' && kubectl set env statefulset/votes VOTES_VERSION=2")
    bash("kubectl rollout status statefulset/votes --timeout=120s")
    for text in ("--request POST", "def answers(", "def versions("):
        lesson.run(lesson.containing(text))
    lesson.run("counted = cats()")

    def after(*changes):
        """What the check thinks of an exercise that begins here and goes so: a number is a version, p0 a partition."""
        lesson.run(lesson.tagged("begin"))
        for change in changes:
            if change.startswith("p"):
                update = f'{{"spec": {{"updateStrategy": {{"rollingUpdate": {{"partition": {change[1:]}}}}}}}}}'
                bash(f"kubectl patch statefulset votes --patch '{update}'")
            else:
                bash(f"kubectl set env statefulset/votes VOTES_VERSION={change}")
            bash("kubectl rollout status statefulset/votes --timeout=120s")
        return lesson.verdict()

    lesson.run(lesson.tagged("begin"))
    lesson.run(lesson.tagged("stub"))
    assert lesson.verdict() == "✗✓✓✓"

    # The wrong shortcuts: a canary that stays; taken back, but the partition is forgotten; no canary at all.
    assert after("p2", "3") == "✓✓✗✗"
    assert after("2") == "✓✓✓✗"
    assert after("p0", "3", "2") == "✓✗✓✓"
    lesson.run(lesson.tagged("begin"))
    lesson.run(lesson.tagged("solution"))
    assert lesson.verdict() == "✓✓✓✓"

    # Fewer Pods: nothing is left that could be at version 3. And another StatefulSet: it knows nothing of version 3.
    bash("kubectl scale statefulset/votes --replicas=1")
    assert lesson.verdict() == "✓✗✗✗"
    manifest = "../manifests/10-statefulsets-remember-names/votes.yaml"
    bash(f"kubectl delete statefulset votes && kubectl apply --filename={manifest}")
    bash("kubectl set env statefulset/votes VOTES_VERSION=2 && kubectl rollout status statefulset/votes --timeout=120s")
    assert lesson.verdict() == "✗✗✓✗"


def test_11_a_ledger_that_knows_who_is_late(exercise):
    lesson = exercise("11", "ledger", "ledger-server", "service")
    bash("kubectl rollout status deployment/ledger --timeout=90s")
    bash("kubectl apply --filename=../manifests/11-singletons-need-leases/{lease,candidate,offices}.yaml")
    bash("kubectl rollout status deployment/offices --timeout=90s")
    for text in ("def book(", "since = 0", "def lease(", "zombie = ''", "def others("):
        lesson.run(text if "=" in text else lesson.containing(text))

    def after(rule):
        """What the check thinks of a rule that is given to the ledger while an office leads and sells."""
        lesson.run(lesson.tagged("stub"))
        lesson.run("since = len(book()['entries'])\nlab.eventually(lambda: sold(since), seconds=90)")
        lesson.run(lesson.tagged("stub").replace("return True", f"return {rule}"))
        return lesson.verdict()

    lesson.run(lesson.tagged("stub"))
    assert lesson.verdict() == "✓✓✗✗"
    # The wrong shortcuts: nobody; one name only; each token once; one term back; each ticket once; no Python.
    assert after("False") == "✓✗✗✗"
    assert after("new['office'] == entries[-1]['office']") == "✓✓✗✗"
    assert after("new['token'] > entries[-1]['token']") == "✓✗✗✗"
    assert after("new['token'] >= entries[-1]['token'] - 1") == "✓✓✗✗"
    assert after("not new['ticket'] or new['ticket'] not in [each['ticket'] for each in entries]") == "✓✓✓✗"
    assert after("nothing") == "✓✗✗✗"

    # Whoever has led before is barred, by name; the ledger begins anew, and so nobody is.
    bash("kubectl delete pod --selector=app=ledger && kubectl rollout status deployment/ledger --timeout=90s")
    leads, new = "new['office'] == entries[-1]['office']", "new['office'] not in [each['office'] for each in entries]"
    assert after(f"{leads} or {new}") == "✓✓✓✗"

    lesson.run(lesson.tagged("solution"))
    assert lesson.verdict() == "✓✓✓✓"
    assert after("new['token'] >= entries[-1]['token']") == "✓✓✓✓"
    # One candidate: nobody ever takes over.
    bash("kubectl scale deployment/offices --replicas=1 && kubectl rollout status deployment/offices --timeout=90s")
    assert lesson.verdict() == "✗✓✗✓"


def test_12_a_former_primary_becomes_a_replica(exercise):
    lesson = exercise("12", "services", "runbook", "start-fenced")
    bash("kubectl create secret generic db --from-literal=password=demo-12")
    for manifest in ("db", "client"):
        bash(f"kubectl apply --filename=../manifests/12-replicas-can-lie/{manifest}.yaml")
    bash("kubectl rollout status statefulset/db --timeout=120s && kubectl wait --for=condition=Ready pod/client")

    def begin():
        """Let db-0 acknowledge rows that the others do not have, and db-2 take its place."""
        bash("""
            run() { kubectl exec $1 -- sh /program/$2 $3; }
            run db-0 promote
            kubectl exec db-0 -- mariadb votes --execute='CREATE OR REPLACE TABLE ballots (number INT PRIMARY KEY)'
            run db-1 follow db-0.db && run db-2 follow db-0.db
            kubectl label --overwrite pod db-0 role=primary && kubectl label --overwrite pod db-1 db-2 role=replica""")
        lesson.run("meter, sure = Meter('primary'), Meter('primary', first=1001)")
        lesson.run("meter.write(3)")
        lesson.run("lab.eventually(lambda: meter.lost('db-1') == meter.lost('db-2') == 0)")
        bash("for pod in db-1 db-2; do kubectl exec $pod -- mariadb --execute='STOP SLAVE IO_THREAD'; done")
        lesson.run("meter.write(3)")
        bash("kubectl delete pod db-0 && kubectl rollout status statefulset/db --timeout=90s")
        lesson.run(lesson.tagged("begin"))
        lesson.run("sure.write(3)")

    def anew(ordinal):
        """Have a server begin anew, and follow another."""
        bash(f"""
            kubectl delete persistentvolumeclaim data-db-{ordinal} --wait=false
            kubectl delete pod db-{ordinal} && kubectl rollout status statefulset/db --timeout=90s""")

    begin()
    lesson.run(lesson.tagged("stub"))
    assert lesson.verdict() == "✓✗✗"
    # The wrong shortcuts: db-0 takes writes again; it forgets its history and follows, with rows that nobody else has.
    bash("kubectl exec db-0 -- sh /program/promote")
    assert lesson.verdict() == "✗✗✗"
    bash("""
        position=$(kubectl exec db-2 -- mariadb --skip-column-names --execute='SELECT @@gtid_binlog_pos')
        kubectl exec db-0 -- mariadb --execute="
          STOP SLAVE; RESET SLAVE ALL; RESET MASTER; SET GLOBAL gtid_slave_pos = '$position'"
        kubectl exec db-0 -- sh /program/follow db-2.db && kubectl label --overwrite pod db-0 role=replica""")
    assert lesson.verdict() == "✓✗✗"
    # It begins anew at once: a proper replica, and its rows are lost.
    anew(0)
    bash("kubectl exec db-0 -- sh /program/follow db-2.db && kubectl label pod db-0 role=replica")
    assert lesson.verdict() == "✓✗✓"

    # The rows reach db-2, and db-0 stays as it is.
    begin()
    solution = lesson.tagged("solution")
    lesson.run(solution.partition("\n\n")[0])
    assert lesson.verdict() == "✓✓✗"
    lesson.run(solution)
    assert lesson.verdict() == "✓✓✓"
    # A replica that no Service leads to; one that is gone.
    bash("kubectl label pod db-0 role-")
    assert lesson.verdict() == "✓✓✗"

    # Bad input: the primary is killed once more, and nobody takes its place; a replica has nobody to follow.
    bash("kubectl delete pod db-2")
    with pytest.raises(lesson.names["lab"].Problem, match="promote a replica"):
        lesson.run("sure.write(1)")
    follow = ["kubectl", "exec", "db-1", "--", "sh", "/program/follow", "nobody.db"]
    refused = subprocess.run(follow, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "db-1 can't follow nobody.db: " in refused.stderr and "Then follow it once more." in refused.stderr


def test_13_an_operator_that_may_do_what_it_must(exercise, cluster):
    lesson = exercise("13", "crd", "client", "rights", "operator")
    namespace = lesson.names["namespace"]
    definition = "customresourcedefinition/votesdatabases.runbook.workshop.example"
    ready = "kubectl wait --for=condition=Ready votesdatabase/db --timeout=180s"
    for_the_operator = f"--serviceaccount={namespace}:operator"
    try:
        bash(f"""
            kubectl label {definition} {LABEL}={OWNER} && kubectl wait --for=condition=Established {definition}
            kubectl create secret generic db --from-literal=password=demo
            kubectl create configmap operator --from-file=../images/operator/votesdatabase.py
            kubectl apply --filename=../manifests/13-operators-do-the-runbook/database.yaml
            {ready} && kubectl wait --for=condition=Ready pod/client""")
        lesson.run(lesson.containing("def start(").removesuffix("start()"))
        for text in ("CREATE TABLE", "def database(", "def may("):
            lesson.run(lesson.containing(text))

        def again():
            """Begin the exercise anew: a Role with one right too few, and no primary."""
            lesson.run(lesson.tagged("begin"))
            for text in ("not may(", "--for=condition=Ready=False"):
                lesson.run(lesson.containing(text))

        again()
        lesson.run(lesson.tagged("stub"))
        assert lesson.verdict() == "✗✓✓"

        # The wrong shortcuts: half of the right; somebody else's hands, with all rights.
        bash(f"kubectl create role half --verb=get --resource=pods/exec && "
             f"kubectl create rolebinding half --role=half {for_the_operator}")  # fmt: skip
        assert lesson.verdict() == "✗✓✓"
        lesson.run("start()")
        bash(ready)
        assert lesson.verdict() == "✗✓✓"
        lesson.run("stop()")

        # Far too much: in the whole cluster, in the namespace, or every verb.
        again()
        admin = f"clusterrolebinding {namespace}"
        bash(f"kubectl create {admin} --clusterrole=cluster-admin {for_the_operator}")
        try:
            bash(ready)
            assert lesson.verdict() == "✓✓✗"
        finally:
            bash(f"kubectl delete {admin}")
        bash("kubectl create role every --verb='*' --resource=pods/exec")
        for more in ("clusterrole=edit", "role=every"):
            bash(f"kubectl create rolebinding more --{more} {for_the_operator}")
            assert lesson.verdict() == "✓✓✗"
            bash("kubectl delete rolebinding more")

        bash("kubectl delete rolebinding half")
        again()
        lesson.run(lesson.tagged("solution"))
        assert lesson.verdict() == "✓✓✓"
        row = "mariadb votes --execute='DELETE FROM ballots LIMIT 1'"
        bash(f"for pod in db-0 db-1; do kubectl exec $pod -- {row}; done")
        assert lesson.verdict() == "✓✗✓"
    finally:
        lessons.delete_namespaces(namespace)
        cluster.kubectl("delete", definition)


def test_14_a_dump_that_can_be_trusted(exercise):
    lesson = exercise("14", "services", "shelf", "dump", "nightly")
    bash("""
        kubectl create secret generic database --from-literal=password=demo-1
        kubectl create configmap votes --from-literal=VOTES_CHOICES=cats,dogs,fish
        cd ../manifests/14-backups-are-restores
        kubectl apply --filename=database.yaml --filename=votes.yaml
        kubectl rollout status statefulset/database --timeout=120s
        kubectl wait --for=condition=Ready --timeout=60s pod/shelf
        kubectl set env cronjob/nightly DATABASE=votes""")
    for text in ("CREATE OR REPLACE TABLE ballots", "def content(", "def dumped("):
        lesson.run(lesson.containing(text))
    lesson.run(lesson.containing("def cut(").partition("\n\n\nfor ")[0])
    lesson.run(lesson.tagged("stub"))
    assert lesson.verdict() == "✓✗✗"

    dump = 'mariadb-dump --host=database --user=votes --single-transaction "$DATABASE"'
    file, part, rename = "/dumps/nightly.sql.gz", "/dumps/part", "mv /dumps/part /dumps/nightly.sql.gz"
    good = f"{dump} | gzip > {part}; {rename}"

    def after(script, claim="dumps"):
        """What the check thinks of a CronJob with this script, in a bash that stops at the first failure."""
        container = {"name": "dump", "command": ["bash", "-e", "-o", "pipefail", "-c"], "args": [script]}
        volume = {"name": "dumps", "persistentVolumeClaim": {"claimName": claim}}
        spec = {"containers": [container], "volumes": [volume]}
        patch = {"spec": {"jobTemplate": {"spec": {"template": {"spec": spec}}}}}
        bash(f"kubectl patch cronjob nightly --patch {shlex.quote(json.dumps(patch))}")
        return lesson.verdict()

    # The wrong shortcuts: the file is written in place; half a dump gets its name, as its size is not 0.
    assert after(f"{dump} | gzip > {file}") == "✓✓✗"
    assert after(f"set +o pipefail; {dump} | gzip > {part}; test -s {part}; {rename}") == "✓✗✗"
    # An empty dump that ends with 0; one without a table; one without the view.
    assert after(f"{dump.replace('DATABASE', 'NOWHERE')} | gzip > {part} || true; {rename}") == "✗✗✗"
    assert after(good.replace('"$DATABASE"', '"$DATABASE" voters ballots')) == "✗✓✗"
    assert after(good.replace('"$DATABASE"', '"$DATABASE" --ignore-table=votes.turnout')) == "✗✓✗"
    # A dump made by hand, and a Job that does nothing. A dump on the claim of the database.
    lesson.run(lesson.tagged("solution"))
    assert lesson.verdict() == "✓✓✓"
    assert after("true") == "✗✗✗"
    assert after(good, claim="data-database-0") == "✗✓✗"

    # Another way: the Job tries again, and makes it then; what it said first is what counts.
    lesson.run(lesson.tagged("solution"))
    bash("""kubectl patch cronjob nightly --patch '{"spec": {"jobTemplate": {"spec": {"backoffLimit": 2}}}}'""")
    assert lesson.verdict() == "✓✓✓"


def test_15_six_faults_and_nothing_lost(exercise):
    lesson = exercise("15")
    shop = "../manifests/15-disaster-day/shop"
    cells = [cell for cell in lesson.cells if cell.cell_type == "code"]
    sources = [cell.source for cell in cells]
    begin = next(number for number, source in enumerate(sources) if "def let_go(" in source)
    stub = sources.index(lesson.tagged("stub"))
    solutions = {tag: cell.source for cell in cells for tag in cell.metadata.get("tags", []) if "solution" in tag}
    roll = "kubectl rollout status {} --timeout=120s"

    def mend(*names):
        """Apply solutions, all of them if none is named."""
        for name in names or [tag.removesuffix("-solution") for tag in solutions]:
            lesson.run(solutions[f"{name}-solution"])

    def after(script):
        """What the check thinks after a script."""
        bash(script)
        return lesson.verdict()

    def patched(what, change):
        """What the check thinks after a change, carried out."""
        return after(f"kubectl patch {what} --patch='{change}' && {roll.format(what)} > /dev/null")

    try:
        for source in sources[begin : stub + 1]:
            lesson.run(source)
        assert lesson.verdict() == "✗✗✗✗✗✗"

        # Half of a solution: the template is right again, and the Pod that nobody has deleted waits.
        bash("kubectl set image statefulset/db mariadb=workshop/mariadb:1")
        assert lesson.verdict() == "✗✗✗✗✗✗"
        mend("image")
        assert lesson.verdict() == "✓✗✗✗✗✗"
        # The copy takes writes.
        bash("kubectl exec db-1 -- mariadb --execute='SET GLOBAL read_only = 0'")
        assert lesson.verdict()[1] == "✗"
        bash("kubectl exec db-1 -- mariadb --execute='SET GLOBAL read_only = 1'")
        # The old password comes back, and the shop is open: with the Service mended, that is all it takes.
        mend("service")
        old = '{"stringData": {"password": "demo-15-first"}}'
        bash(f"kubectl patch secret db --patch='{old}' && kubectl rollout restart deployment/votes")
        bash(roll.format("deployment/votes"))
        assert lesson.verdict() == "✓✓✗✓✗✗"
        bash(f"kubectl patch secret db --patch='{old.replace('first', 'second')}'")
        # The application logs in without a password; all that it does, anybody can.
        bash("kubectl exec db-0 -- mariadb --execute=\"ALTER USER votes IDENTIFIED BY ''\"")
        assert lesson.verdict()[2] == "✗"
        mend("secret")
        bash(f"kubectl rollout restart deployment/votes && {roll.format('deployment/votes')}")
        assert lesson.verdict() == "✓✓✓✓✗✗"

        # An empty claim of the right name, with the right photo in it; it is let go again.
        bash(f"""
            kubectl delete persistentvolumeclaim photos
            kubectl apply --filename={shop}/photos-claim.yaml && {roll.format("deployment/photos")}
            kubectl exec deployment/photos -- sh -c 'echo {lesson.names["photo"]} > /photos/cat'""")
        assert lesson.verdict() == "✓✓✓✓✗✗"
        mend("files")
        assert lesson.verdict() == "✓✓✓✓✓✗"

        # Nobody's name in the Lease, which is as long as before; a new Lease, whose terms begin anew; one clerk.
        held = '{"spec": {"holderIdentity": ""}}'
        bash(f"kubectl patch lease clerk --type=merge --patch='{held}'")
        lesson.run("lab.eventually(numbers)")
        assert lesson.verdict() == "✓✓✓✓✓✗"
        bash(f"kubectl delete lease clerk && kubectl apply --filename={shop}/clerk-lease.yaml")
        assert lesson.verdict() == "✓✓✓✓✓✗"
        later = '{"spec": {"leaseTransitions": 50}}'  # as if its terms had been counted on
        bash(f"kubectl patch lease clerk --type=merge --patch='{later}' && kubectl delete pod --selector=app=clerk")
        lesson.run("lab.eventually(lambda: numbers() and numbers()[0][0] > 50, seconds=30)")
        assert lesson.verdict() == "✓✓✓✓✓✓"
        mend()
        assert lesson.verdict() == "✓✓✓✓✓✓"

        # More of them, on what is right in everything else: fewer Pods, no probes, the value in the Deployment.
        assert patched("deployment/clerk", '{"spec": {"replicas": 1}}') == "✓✓✓✓✓✗"
        patched("deployment/clerk", '{"spec": {"replicas": 2}}')
        assert patched("statefulset/db", '{"spec": {"replicas": 1}}') == "✗✗✗✓✓✓"
        patched("statefulset/db", '{"spec": {"replicas": 2}}')
        assert patched("deployment/votes", '{"spec": {"replicas": 1}}') == "✓✓✓✗✓✓"
        assert patched("deployment/votes", '{"spec": {"replicas": 0}}') == "✓✗✓✗✓✓"
        patched("deployment/votes", '{"spec": {"replicas": 2}}')
        template = '{"spec": {"template": {"spec": {"containers": [{"name": "%s", %s}]}}}}'
        assert patched("deployment/votes", template % ("votes", '"readinessProbe": null')) == "✓✓✓✗✓✓"
        bash(f"kubectl apply --filename={shop}/votes.yaml && {roll.format('deployment/votes')}")
        told = '"env": [{"name": "VOTES_CHOICES", "value": "cats,dogs,birds"}]'
        assert patched("deployment/votes", template % ("votes", told)) == "✓✓✓✗✓✓"
        patched("deployment/votes", template % ("votes", '"env": null'))
        assert patched("statefulset/db", template % ("mariadb", '"readinessProbe": null'))[0] == "✗"
        bash(f"kubectl apply --filename={shop}/db.yaml && {roll.format('statefulset/db')}")
        lesson.run("lab.eventually(lambda: holds(counts), seconds=60)")
        assert lesson.verdict() == "✓✓✓✓✓✓"

        # Everything begins anew: all is green, and the votes are gone.
        bash(f"""
            kubectl delete persistentvolumeclaim data-db-0 data-db-1 --wait=false
            kubectl delete pod db-0 db-1 && {roll.format("statefulset/db")}""")
        assert lesson.verdict()[0] == "✗"
    finally:
        bash("kubectl delete statefulset,deployment,persistentvolumeclaim --all")
        lesson.run("let_go()")
