"""The set-up: everything that is missing, side by side, then the cluster."""

import shutil

from kit import CACHE, cluster, console, engine, images, slides, tools
from kit.console import Step

# The work on a node image that must be built here is split, so that compiling overlaps with everything else.
PROGRAMS = CACHE / "node-programs"


def prepare(tests: bool = False) -> None:
    """Have the Python packages, an engine, kind, and all images. What is there already is left as it is.

    Args:
        tests: also have what the slides are built with.
    """
    with console.only_one(CACHE / "setup.lock", "the set-up"):
        _prepare(tests)


def _prepare(tests: bool) -> None:
    node: dict = {}

    def fetch(say) -> str:
        node["source"] = images.fetch_node(say)
        return node["source"] or "no registry answers; it will be built here, which takes about ten minutes"

    def compile_programs(say) -> str:
        if node["source"]:
            return "not needed"
        images.compile_node(say, PROGRAMS)
        return "compiled"

    def build(say) -> str:
        if not node["source"]:
            node["source"] = images.build_node(say, PROGRAMS)
            shutil.rmtree(PROGRAMS)
        return node["source"]

    def debian_images(say) -> str:
        return images.build_workshop(say, compiled=False)

    console.run_steps(
        [
            Step("Python packages", tools.ensure_packages),
            Step("engine", engine.ensure),
            Step("kind", tools.ensure_kind, after=("node programs",)),
            Step("Gateway API", tools.ensure_gateway_api),
            Step("node image", fetch, after=("engine",)),
            Step("node programs", compile_programs, after=("node image",)),
            Step("Debian base", images.ensure_debian, after=("engine",)),
            Step("Debian images", debian_images, after=("Debian base", "Python packages")),
            # Sealed Secrets then finds the client library that it shares with Kubernetes compiled already.
            Step("workshop images", images.ensure_workshop, after=("Debian images", "node programs")),
            Step("node build", build, after=("node programs", "Debian base")),
            Step("cluster image", images.ensure_own_node, after=("node build", "workshop images")),
            *(slides.steps() if tests else []),
        ]
    )


def everything(tests: bool = False) -> None:
    """The whole set-up, ending with a usable cluster; for the tests, also what the slides are built with."""
    prepare(tests)
    console.run_steps([Step("cluster", cluster.up)])
