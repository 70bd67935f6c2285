"""What every test and every notebook cell gets: our tools first on PATH, and the real cluster.

Tests ask for the fixtures `kind` and `cluster`; nbval's cells can have no fixtures, so a hook gives them the same.
"""

import os
import re
import sys
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest
from kit import ROOT, classroom, engine, lessons, tools
from kit import cluster as our_cluster
from kit.console import Failure, run
from nbval.plugin import IPyNbCell


class Cluster:
    """The kind cluster of this session, brought up when the first test or cell asks for it.

    Attributes:
        name: what kind calls it.
        kubeconfig: the file with its credentials, and no other cluster's.
        context: its context in that file.
    """

    def __init__(self):
        self.name, self.kubeconfig, self.context = our_cluster.name(), our_cluster.kubeconfig(), our_cluster.context()
        self.lessons: dict[str, set[str]] = {}  # those under way, and what was there before them
        self.made_here = False
        self._turn = ExitStack()
        self._asked, self._problem = False, "The cluster did not come up in time. Run scripts/cluster up."

    def up(self) -> "Cluster":
        """Have it usable. Tried once: what could not be made fails every test that needs it, in a sentence."""
        if not self._asked:
            self._asked = True
            try:
                engine.look()
                pinned_kind()
                self.made_here = not our_cluster.nodes()
                our_cluster.up()
                self._problem = None
            except Failure as failure:
                self._problem = f"{failure.cause} {failure.remedy}"
        if self._problem:
            pytest.fail(self._problem, pytrace=False)
        return self

    def kubectl(self, *arguments, **options):
        """Run kubectl on this cluster; the options are those of `kit.console.run` (check=False, input=…)."""
        return our_cluster.kubectl(*arguments, **options)

    def begin(self, stem: str) -> None:
        """Remember a lesson that will leave something in the cluster; wait while another session replays one."""
        if not self.lessons:
            self._turn.enter_context(lessons.turn())
        if stem not in self.lessons:
            self.lessons[stem] = lessons.inventory()

    def finish(self, stem: str) -> set[str]:
        """Heal what a lesson has hurt, remove what it has left in the cluster, and the cluster that it was to break.

        Returns:
            What it has left that was not there before.
        """
        before = self.lessons.pop(stem)
        with in_a_sentence():
            try:
                our_cluster.heal()
                left = lessons.inventory() - before
                lessons.delete_namespaces(stem)
            finally:
                lessons.remove_cluster(stem)
        if not self.lessons:
            self._turn.close()
        return left

    def close(self, keep: bool) -> None:
        """Remove what interrupted lessons have left, and the cluster if this session made it."""
        for stem in sorted(self.lessons):
            self.finish(stem)
        if self.made_here and not keep:
            our_cluster.down()


# Lessons that take turns, too: 06 and 13 define the kind SealedSecret and delete it; 06 and 14 each make a cluster, and
# the 128 inotify instances that Linux gives a user may be too few for five nodes.
SAME = {"13": "06", "14": "06"}
NUMBERS = count()  # one for each namespace of a test
CLUSTER = pytest.StashKey[Cluster]()
FAILED = pytest.StashKey[str]()


def pinned_kind() -> Path:
    """The path of kind, in the version that scripts/kit pins.

    Raises:
        Failure: it is missing, or another version.
    """
    if not tools.KIND.exists():
        raise Failure(f"kind is not at {tools.KIND}.", "Run scripts/setup.")
    version = run([tools.KIND, "version"]).stdout.strip()
    if tools.KIND_VERSION not in version.split():
        raise Failure(f"{tools.KIND} is not {tools.KIND_VERSION} but {version!r}.", "Remove it and run scripts/setup.")
    return tools.KIND


@contextmanager
def in_a_sentence():
    """Turn the kit's Failure into a test's: cause and remedy, no traceback."""
    try:
        yield
    except Failure as failure:
        pytest.fail(f"{failure.cause} {failure.remedy}", pytrace=False)


# ── The session ───────────────────────────────────────────────────────────────────────────────────────────────────


def pytest_addoption(parser):
    """Declare --keep-cluster."""
    parser.addoption(
        "--keep-cluster",
        action="store_true",
        help="keep the cluster even if this session had to make it. One that was there before (a learner's, or the one "
        "that scripts/test makes first) is reused and never removed, with or without this option",
    )


def pytest_configure(config):
    """Let this session, and every kernel it starts, know our tools and our cluster only."""
    if Path(sys.prefix) != tools.ENVIRONMENT:
        raise pytest.UsageError(f"This pytest is not the workshop's. Run {tools.BIN}/pytest, or scripts/test.")
    tools.enter_environment()
    try:
        config.stash[CLUSTER] = Cluster()
    except Failure as failure:
        raise pytest.UsageError(f"{failure.cause} {failure.remedy}") from None
    os.environ.update(classroom.environment())
    if not sys.__stdout__.isatty() and config.option.color == "auto":
        config.option.color = "no"  # nbval's own colours would fill a log with escape codes
    # nbval would look for it from wherever pytest was called.
    config.option.nbval_sanitize_with = str(ROOT / config.option.nbval_sanitize_with)


def lesson_of(item) -> str:
    """The number of the lesson that a test is about, which stands in its name: "07"."""
    return re.search(r"(?:test_|\[)(\d\d)", item.name)[1]


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Mark what needs the cluster, so that scripts/check can leave it out; tell nbval what it has no options for."""
    for item in items:
        if isinstance(item, IPyNbCell):
            item.output_timeout = 60  # nbval would give a busy machine 5 s to print what a cell has done
        if isinstance(item, IPyNbCell) or {"kind", "cluster"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("cluster")
        if item.get_closest_marker("beside"):  # the tests of one lesson use the same names, so they take turns
            number = lesson_of(item)
            item.add_marker(pytest.mark.xdist_group(SAME.get(number, number)))
    # Of two at a time the long ones first, and those are the later lessons': none is left for one alone at the end.
    items.sort(key=lambda item: -int(lesson_of(item)) if item.get_closest_marker("beside") else 0)
    for notebook in {item.parent for item in items if isinstance(item, IPyNbCell)}:
        # A chart shows seconds, and a difference in a table of HTML nobody can read: the text beside them is compared.
        notebook.skip_compare += ("image/svg+xml", "text/html")


@pytest.hookimpl(trylast=True)  # after pytest has stopped the last kernel
def pytest_sessionfinish(session):
    """Leave the machine as it was found; a session that is one of several does not know whether the others are done."""
    one_of_several = hasattr(session.config, "workerinput")
    session.config.stash[CLUSTER].close(session.config.option.keep_cluster or one_of_several)


# ── Tests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def kind() -> Path:
    """The path of the pinned kind."""
    with in_a_sentence():
        return pinned_kind()


@pytest.fixture(scope="session")
def cluster(kind, pytestconfig) -> Cluster:
    """The session's cluster, usable."""
    return pytestconfig.stash[CLUSTER].up()


@pytest.fixture
def environment():
    """Put the environment back, in which `start` leaves its marks."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def fresh(cluster, environment, monkeypatch):
    """A namespace's name, in the place and the state in which a notebook begins; removed afterwards."""
    import lab  # not above: the Kubernetes client, which it imports, notes whose kubeconfig is the default one

    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setattr(lab, "_namespace", None)
    name = f"test-lab-{os.getpid()}-{next(NUMBERS)}"
    yield name
    cluster.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")


@pytest.fixture
def started(fresh):
    """A namespace that `start` has made."""
    import lab

    return lab.start(fresh)


# ── Notebook cells ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.hookimpl(tryfirst=True)  # before the notebook's kernel starts
def pytest_runtest_setup(item):
    """Give a cell the cluster; skip it if an earlier one of its notebook failed."""
    if not isinstance(item, IPyNbCell):
        return
    if failed := item.parent.stash.get(FAILED, None):
        pytest.skip(f"{failed} of this notebook failed")
    with item.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():  # it may have to wait
        item.config.stash[CLUSTER].up().begin(item.path.stem)


def pytest_exception_interact(node, report):
    """Remember the first cell of a notebook that failed, as those below it would only repeat that; report its words."""
    if isinstance(node, IPyNbCell):
        node.parent.stash.setdefault(FAILED, node.name)
        for output in node.test_outputs or ():  # nbval says that there was an unexpected stderr, but not what it was
            if output.output_type == "stream":
                report.sections.append((f"The cell's {output.name}", output.text))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """After a notebook's last cell, when its kernel has stopped, remove what it has left, and complain if it has."""
    try:
        return (yield)
    finally:
        session_cluster = item.config.stash[CLUSTER]
        last = nextitem is None or nextitem.parent is not item.parent
        if isinstance(item, IPyNbCell) and last and item.path.stem in session_cluster.lessons:
            left = session_cluster.finish(item.path.stem)
            if left and FAILED not in item.parent.stash:
                pytest.fail(f"The lesson left behind: {', '.join(sorted(left))}", pytrace=False)
