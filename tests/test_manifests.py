"""Every manifest: what can be told from reading it, and what the API server says of it. A kustomization counts as what
it builds.

A lesson's manifest that breaks Pod Security on purpose says so in a comment: "# breaks restricted: <why>".
"""

import os
import sys
from subprocess import PIPE, Popen

import kubernetes_validate
import pytest
import yaml
from kit import LABEL, OWNER, ROOT, images
from kit.console import run

MANIFESTS = ROOT / "manifests"
LESSONS = sorted(MANIFESTS.rglob("*.yaml"))
SYSTEM = [path for folder in ("images/node/files/manifests", "images/traefik", "notebooks")
          for path in sorted((ROOT / folder).glob("*.yaml"))]  # fmt: skip
IMAGES = {f"workshop/system:{images.NODE['version']}", *(image["tag"] for image in images.WORKSHOP.values())}
BREAKS = "# breaks restricted: "

KUSTOMIZATION = "kustomization.yaml"

each_lesson_manifest = pytest.mark.parametrize("path", LESSONS, ids=lambda path: str(path.relative_to(MANIFESTS)))


def objects_of(path) -> str:
    """The text of the objects that kubectl would send: those in the file, or those that a kustomization builds."""
    return run(["kubectl", "kustomize", path.parent]).stdout if path.name == KUSTOMIZATION else path.read_text()


def documents(text) -> list:
    """The objects in a manifest."""
    return [document for document in yaml.safe_load_all(text) if document]


# The kinds that lessons add to Kubernetes, as they do in their lesson …
DEFINITIONS = [document for path in LESSONS for document in documents(path.read_text())
               if document["kind"] == "CustomResourceDefinition"]  # fmt: skip
# … and whose objects only the API server can judge: it has their schemas, kubernetes_validate has not.
CUSTOM = {"gateway.networking.k8s.io", *(definition["spec"]["group"] for definition in DEFINITIONS)}


def filled_in(path) -> str:
    """The text of a manifest of a node, with what the node's build and kind put in."""
    text = path.read_text().replace("workshop/system:VERSION", f"workshop/system:{images.NODE['version']}")
    return text.replace("{{ .PodSubnet }}", "10.244.0.0/16")


def mappings(value):
    """Yield every mapping in a document, however deep."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from mappings(inner)


def wrong_schema(document) -> list[str]:
    """What the schemas of the newest known Kubernetes say against an object; one of an unknown kind is wrong."""
    if str(document.get("apiVersion")).split("/")[0] in CUSTOM:
        return []
    try:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return [f"{document.get('kind')}: {error.message}"]
    return []


def wrong_images(document) -> list[str]:
    """The containers that would need a registry: only listed images, with their tags, are in the nodes."""
    found = []
    for container in mappings(document):
        image = container.get("image")
        if isinstance(image, str) and image not in IMAGES:
            found.append(f"{image} is not in images/images.toml")
        if isinstance(image, str) and container.get("imagePullPolicy") != "IfNotPresent":
            found.append(f"{image} needs imagePullPolicy: IfNotPresent")
    return found


def wrong_shape(text: str, fewest: int = 10) -> list[str]:
    """What a reader would stumble over in a lesson's manifest."""
    lines = len(text.splitlines())
    return [] if fewest <= lines <= 35 else [f"{lines} lines; {fewest} to 35 are one idea"]


def wrong_place(text: str) -> list[str]:
    """The objects of a lesson's manifest that would not go where the lesson is."""
    found = any("namespace" in (document.get("metadata") or {}) for document in documents(text))
    return ["metadata.namespace is set; the lesson's own is the default"] if found else []


def wrong(text: str) -> list[str]:
    """What is wrong with the objects in a manifest."""
    found = documents(text)
    if not found:
        return ["no object in it"]
    return [problem for document in found for problem in wrong_schema(document) + wrong_images(document)]


@each_lesson_manifest
def test_a_lesson_manifest_reads_well(path):
    objects, fewest = objects_of(path), 5 if path.name == KUSTOMIZATION else 10
    assert wrong(objects) + wrong_place(objects) + wrong_shape(path.read_text(), fewest) == []


@pytest.mark.parametrize("path", SYSTEM, ids=lambda path: path.name)
def test_a_system_manifest_is_valid(path):
    assert wrong(filled_in(path)) == []


def test_there_are_manifests():
    assert len(LESSONS) > 1 and len(SYSTEM) > 2


GOOD = """
apiVersion: v1
kind: Pod
metadata:
  name: votes
spec:
  containers:
    - name: votes
      image: workshop/votes:1
      imagePullPolicy: IfNotPresent
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind: Pod", "kind: Podd", "Podd: Couldn't find schema"),
        ("containers:", "container:", "Pod: 'containers' is a required property"),
        ("image: workshop/votes:1", "image: workshop/votes:latest", "votes:latest is not in images/images.toml"),
        ("IfNotPresent", "Always", "workshop/votes:1 needs imagePullPolicy: IfNotPresent"),
        (GOOD, "# nothing", "no object in it"),
        (GOOD, GOOD * 4, "40 lines"),
        ("  name: votes\nspec", "  name: votes\n  namespace: here\nspec", "metadata.namespace is set"),
    ],
)
def test_what_is_wrong_is_said(old, new, said):
    assert wrong(GOOD) + wrong_place(GOOD) + wrong_shape(GOOD) == []
    broken = GOOD.replace(old, new)
    problems = wrong(broken) + wrong_place(broken) + wrong_shape(broken)
    assert any(said in problem for problem in problems), problems


def test_what_a_kustomization_builds_is_judged(tmp_path):
    (tmp_path / "pod.yaml").write_text(GOOD)
    overlay = tmp_path / KUSTOMIZATION
    overlay.write_text("resources: [pod.yaml]\nnamespace: here\nimages: [{name: workshop/votes, newTag: latest}]\n")
    assert wrong(objects_of(overlay)) == ["workshop/votes:latest is not in images/images.toml"]
    assert wrong_place(objects_of(overlay)) != []


# ── The API server ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def custom_kinds(cluster):
    """Have the API server know the kinds of the lessons, and forget those again that it did not know before."""
    added = []
    for definition in map(yaml.safe_dump, DEFINITIONS):
        if cluster.kubectl("get", "--filename=-", input=definition, check=False).returncode:
            added.append(definition)
            cluster.kubectl("create", "--filename=-", input=definition)
            cluster.kubectl("wait", "--for=condition=Established", "--filename=-", "--timeout=30s", input=definition)
    yield
    for definition in added:
        cluster.kubectl("delete", "--filename=-", input=definition)


@pytest.fixture(scope="module")
def apply(cluster, custom_kinds):
    """Return a function that has the API server judge a manifest, in a namespace such as the lessons have."""
    name = f"test-manifests-{os.getpid()}"
    levels = [f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn")]
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("label", "namespace", name, f"{LABEL}={OWNER}", *levels)
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", f"--namespace={name}", "--timeout=30s")
    strict = (f"--namespace={name}", "--dry-run=server", "--validate=strict", "--warnings-as-errors")
    yield lambda text: cluster.kubectl("apply", "--filename=-", *strict, input=text, check=False)
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@each_lesson_manifest
def test_the_api_server_takes_it(apply, path):
    answer = apply(objects_of(path))
    if BREAKS in path.read_text():
        assert "violate" in answer.stderr and "PodSecurity" in answer.stderr, f"It breaks nothing: remove {BREAKS!r}"
    else:
        assert answer.returncode == 0, answer.stderr


def test_the_api_server_refuses(apply):
    answer = apply(GOOD)
    assert answer.returncode and "violates PodSecurity" in answer.stderr
    answer = apply(GOOD.replace("name: votes\n      image", "title: votes\n      image"))
    assert answer.returncode and "unknown field" in answer.stderr


CUSTOM_GOOD = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: votes}
spec: {hostnames: [votes.example]}
"""


def test_the_api_server_judges_custom_resources(apply):
    assert apply(CUSTOM_GOOD).returncode == 0
    for old, new, said in [("kind: HTTPRoute", "kind: HTTPRout", "no matches for kind"),
                           ("hostnames", "hosts", "unknown field"),
                           ("[votes.example]", "votes.example", "must be of type array")]:  # fmt: skip
        answer = apply(CUSTOM_GOOD.replace(old, new))
        assert answer.returncode and said in answer.stderr, answer.stderr


# ── Programs in ConfigMaps ────────────────────────────────────────────────────────────────────────────────────────


def test_the_proofreader_of_lesson_05_reads_on_when_the_page_has_just_gone(tmp_path):
    manifest = MANIFESTS / "05-configuration-lives-outside/proofreader.yaml"
    (program,) = [each["data"]["read.py"] for each in documents(manifest.read_text())]
    page, other = tmp_path / "page", tmp_path / "other"
    with Popen([sys.executable, "-c", program, page, "last"], stdout=PIPE, text=True) as reader:
        assert reader.stdout.readline() == "reading\n"  # and there is no page yet
        other.write_text("last\n" * 1000)
        other.rename(page)
        assert reader.communicate(timeout=20)[0] == "0 last\n"
