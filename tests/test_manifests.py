"""Every manifest: what can be told from reading it, and what the API server says of it.

A lesson's manifest that breaks Pod Security on purpose says so in a comment: "# breaks restricted: <why>".
"""

import os

import kubernetes_validate
import pytest
import yaml
from kit import LABEL, OWNER, ROOT, images

LESSONS = [path for path in sorted((ROOT / "manifests").rglob("*.yaml")) if path.name != "kustomization.yaml"]
SYSTEM = [path for folder in ("images/node/files/manifests", "images/traefik", "notebooks")
          for path in sorted((ROOT / folder).glob("*.yaml"))]  # fmt: skip
IMAGES = {f"workshop/system:{images.NODE['version']}", *(image["tag"] for image in images.WORKSHOP.values())}
BREAKS = "# breaks restricted: "

each_lesson_manifest = pytest.mark.parametrize("path", LESSONS, ids=lambda path: f"{path.parent.name}/{path.name}")


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


def wrong_shape(text: str) -> list[str]:
    """What a reader would stumble over in a lesson's manifest."""
    lines = len(text.splitlines())
    found = [] if 10 <= lines <= 35 else [f"{lines} lines; 10 to 35 are one idea"]
    if any("namespace" in (document.get("metadata") or {}) for document in yaml.safe_load_all(text)):
        found.append("metadata.namespace is set; the lesson's own is the default")
    return found


def wrong(text: str) -> list[str]:
    """What is wrong with the objects in a manifest."""
    documents = [document for document in yaml.safe_load_all(text) if document]
    if not documents:
        return ["no object in it"]
    return [problem for document in documents for problem in wrong_schema(document) + wrong_images(document)]


@each_lesson_manifest
def test_a_lesson_manifest_reads_well(path):
    assert wrong(path.read_text()) + wrong_shape(path.read_text()) == []


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
    assert wrong(GOOD) + wrong_shape(GOOD) == []
    broken = GOOD.replace(old, new)
    problems = wrong(broken) + wrong_shape(broken)
    assert any(said in problem for problem in problems), problems


# ── The API server ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def apply(cluster):
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
    text = path.read_text()
    answer = apply(text)
    if BREAKS in text:
        assert "violate" in answer.stderr and "PodSecurity" in answer.stderr, f"It breaks nothing: remove {BREAKS!r}"
    else:
        assert answer.returncode == 0, answer.stderr


def test_the_api_server_refuses(apply):
    answer = apply(GOOD)
    assert answer.returncode and "violates PodSecurity" in answer.stderr
    answer = apply(GOOD.replace("name: votes\n      image", "title: votes\n      image"))
    assert answer.returncode and "unknown field" in answer.stderr
