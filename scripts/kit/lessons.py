"""The lessons: finding their notebooks, and removing what a run of one leaves in the cluster."""

from pathlib import Path

from kit import LABEL, OWNER, ROOT, cluster

NOTEBOOKS = ROOT / "notebooks"


def notebooks() -> dict[str, Path]:
    """Every lesson's notebook by its number: {"01": …/01-stateless-apps-scale.ipynb}."""
    return {path.stem[:2]: path for path in sorted(NOTEBOOKS.glob("[0-9][0-9]-*.ipynb"))}


def delete_namespaces(stem: str) -> list[str]:
    """Delete what a lesson has left: our namespaces called as it is, or beginning so ("02-ingress-ends-tls-prod").

    Returns:
        Their names.

    Raises:
        Failure: they are not gone within a minute.
    """
    shown = cluster.kubectl("get", "namespaces", f"--selector={LABEL}={OWNER}", "--output=name").stdout
    names = [name.removeprefix("namespace/") for name in shown.split()]
    left = [name for name in names if name == stem or name.startswith(f"{stem}-")]
    if left:
        cluster.kubectl("delete", "namespace", *left, "--timeout=60s",
                        remedy=f"See what holds it: kubectl get namespace {left[0]} --output=yaml")  # fmt: skip
    return left
