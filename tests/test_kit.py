"""The kit's own functions, each with real files, sockets, programs and containers."""

import contextlib
import functools
import hashlib
import http.server
import json
import os
import random
import socket
import stat
import string
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from kit import LABEL, OWNER, ROOT, classroom, cluster, console, engine, images, lessons, restricted_runtime, tools
from kit.console import Failure, Step, run, run_steps

# ── console ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_failing_program_is_told_in_one_sentence_with_its_last_words():
    with pytest.raises(Failure) as told:
        run(["sh", "-c", "echo one >&2; echo two >&2; exit 3"], remedy="Do this.")
    assert "status 3" in told.value.cause and "two" in told.value.cause
    assert told.value.remedy == "Do this."


def test_a_go_programs_chatter_does_not_hide_why_it_failed(tmp_path):
    """kubeadm ends with dozens of answers that it got, the reason, and dozens of places in its source."""
    asked = 'I1129 20:37:18.457116     187 round_trippers.go:632] "Response" verb="POST"\n' * 12
    frames = "k8s.io/app/phases.(*Runner).Run.func1\n\tk8s.io/app/phases/runner.go:262\n" * 12
    said = f"[kubelet] started\n{asked}error execution phase: no room\n{frames}runtime.goexit\n\truntime/asm.s:1\n"
    (tmp_path / "said").write_text(said)
    with pytest.raises(Failure) as told:
        run(["sh", "-c", "cat said >&2; exit 1"], cwd=tmp_path)
    assert [line.strip() for line in told.value.cause.splitlines()[1:]] == [
        "[kubelet] started",
        "error execution phase: no room",
    ]


def test_a_missing_program_is_named_with_the_path_that_was_searched():
    with pytest.raises(Failure, match="no-such-program is not on PATH .*/"):
        run(["no-such-program"])


def test_a_program_that_hangs_is_ended_with_all_it_started(tmp_path):
    child = tmp_path / "child"
    with pytest.raises(Failure, match="gave no answer within 1 s"):
        run(["sh", "-c", f"tail -f /dev/null & echo $! > {child}; wait"], timeout=1)
    deadline = time.monotonic() + 10
    while runs(int(child.read_text())):
        assert time.monotonic() < deadline


def runs(pid: int) -> bool:
    """Whether a process still runs; one that is dead and waits for its parent to notice does not."""
    shown = run(["ps", "-o", "stat=", "-p", pid], check=False).stdout.strip()
    return bool(shown) and not shown.startswith("Z")


def test_steps_run_in_order_and_beside_one_another(capsys):
    done = []
    meet = __import__("threading").Barrier(2, timeout=10)  # breaks unless both run at the same time

    def together(name):
        meet.wait()
        done.append(name)
        return "done"

    run_steps(
        [
            Step("last", lambda say: done.append("last") or "done", after=("left", "right")),
            Step("left", lambda say: together("left")),
            Step("right", lambda say: together("right")),
        ]
    )
    assert sorted(done[:2]) == ["left", "right"] and done[2] == "last"
    assert "✓ last: done" in capsys.readouterr().out


def test_a_failed_step_ends_the_programs_beside_it():
    def fail(say):
        raise Failure("It broke.", "Mend it.")

    with pytest.raises(Failure, match="It broke"):
        run_steps([Step("long", lambda say: run(["tail", "-f", "/dev/null"]).stdout), Step("broken", fail)])
    assert run(["echo", "again"]).stdout == "again\n"  # programs may start again afterwards


def holder(lock, *more):
    """A process that holds a lock, says so, and ends."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(console.__file__).parents[1])!r})\n"
        "from pathlib import Path; from kit.console import only_one\n"
        f"with only_one(Path({str(lock)!r}), 'the test', *{more!r}): print('inside')"
    )
    return subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("mine", "other"), [((), ()), ((), (True,)), ((True,), ())])
def test_a_lock_is_held_by_one_process_at_a_time(tmp_path, mine, other):
    with console.only_one(tmp_path / "lock", "the test", *mine):
        process = holder(tmp_path / "lock", *other)
        waiting = process.stdout.readline()
        assert f"Process {os.getpid()} is at work on the test" in waiting
    assert process.communicate(timeout=10)[0] == "inside\n"


def test_those_who_share_a_lock_hold_it_together(tmp_path):
    with console.only_one(tmp_path / "lock", "the test", shared=True):
        assert holder(tmp_path / "lock", True).communicate(timeout=10)[0] == "inside\n"


# ── engine ────────────────────────────────────────────────────────────────────────────────────────────────────────


def process_object():
    return {
        "capabilities": {"bounding": ["CAP_CHOWN", "CAP_SYS_RESOURCE"], "effective": ["CAP_SYS_RESOURCE"]},
        "oomScoreAdj": -999,
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 2**40, "soft": 2**40}],
    }


def test_the_restricted_runtime_takes_out_what_the_host_withholds():
    trimmed = restricted_runtime.trim(process_object(), mask=(1 << 41) - 1 - (1 << 24))
    assert trimmed["capabilities"] == {"bounding": ["CAP_CHOWN"], "effective": []}
    assert trimmed["oomScoreAdj"] == 0
    hard = __import__("resource").getrlimit(__import__("resource").RLIMIT_NOFILE)[1]
    assert trimmed["rlimits"][0]["hard"] == (hard if hard != -1 else 2**40)


def test_the_restricted_runtime_leaves_a_whole_host_alone():
    assert restricted_runtime.trim(process_object(), mask=(1 << 41) - 1) == process_object()


@pytest.mark.parametrize("form", (["--bundle", "B"], ["--bundle=B"], ["-b", "B"]))
def test_the_restricted_runtime_finds_the_bundle(form):
    assert restricted_runtime.option(["create", *form, "name"], "--bundle", "-b") == "B"


@pytest.mark.cluster
def test_a_privileged_container_runs_on_this_host(engine_ready):
    """Where the host withholds a capability, this needs the restricted runtime to work."""
    shown = images.docker("run", "--rm", "--privileged", "workshop/base:1", "grep", "CapEff", "/proc/self/status")
    assert shown.stdout.startswith("CapEff:")


@pytest.mark.cluster
def test_an_installation_that_was_interrupted_is_completed_first(engine_ready):
    script = "touch /var/lib/dpkg/updates/0001; python3 -c 'from kit import engine; engine.install(\"curl\")'"
    kit = [f"--volume={ROOT}/scripts:/scripts:ro", "--env=PYTHONPATH=/scripts"]
    images.docker("run", "--rm", "--user=0", *kit, "workshop/base:1", "sh", "-ec", script)


@pytest.mark.cluster
def test_an_engine_that_is_still_starting_is_waited_for(engine_ready, tmp_path, monkeypatch):
    """Like dockerd after a crash: its socket takes connections, and nobody reads them yet."""
    real, waiting = engine.address().removeprefix("unix://"), threading.Event()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "starting.sock"))
    listener.listen()

    def carry(source, target):
        with contextlib.suppress(OSError):  # a client that gave up
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def answer():
        waiting.wait()
        while True:
            client, server = listener.accept()[0], socket.socket(socket.AF_UNIX)
            server.connect(real)
            for pair in ((client, server), (server, client)):
                threading.Thread(target=carry, args=pair, daemon=True).start()

    threading.Thread(target=answer, daemon=True).start()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/starting.sock")
    with pytest.raises(engine.Silent, match="does not answer within 4 s"):
        engine.look()
    assert engine.ensure(say=lambda text: waiting.set()).endswith("already starting")


@pytest.fixture
def engine_ready():
    """The engine that the machine has, or a failure that says what to do."""
    return engine.look()


# ── tools ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_kind_of_the_right_version_on_path_is_taken(tmp_path, monkeypatch):
    program(tmp_path, "kind", f"echo kind {tools.KIND_VERSION} go1.26 linux/amd64")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(tools, "KIND", tmp_path / "cache" / "kind")
    assert tools.ensure_kind() == f"{tools.KIND_VERSION}, copied from {tmp_path / 'kind'}"
    assert tools.ensure_kind() == f"{tools.KIND_VERSION}, in the cache"


def test_a_kind_of_another_version_is_passed_over(tmp_path, monkeypatch):
    program(tmp_path, "kind", "echo kind v0.20.0 go1.20 linux/amd64")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH'].split(str(tools.KIND.parent) + ':')[-1]}")
    monkeypatch.setattr(tools, "KIND", tmp_path / "cache" / "kind")
    assert "copied" not in tools.ensure_kind()
    assert tools.KIND_VERSION in run([tools.KIND, "version"]).stdout


def test_a_download_with_another_checksum_is_refused():
    with pytest.raises(Failure, match="not what was pinned: SHA-256 [0-9a-f]{64}, wanted aee6"):
        tools.check(b"not kind", tools.KIND_SHA256["linux-amd64"], "kind")


@pytest.fixture
def gateway_api(tmp_path, monkeypatch):
    """Two small files where the Gateway API is downloaded from, and an empty cache; returns the files' folder."""
    folder = tmp_path / "site" / tools.GATEWAY_API_VERSION / "config/crd/standard"
    folder.mkdir(parents=True)
    for kind in ("gateways", "httproutes"):
        (folder / f"gateway.networking.k8s.io_{kind}.yaml").write_text(f"kind: {kind}\n")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "site")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(tools, "GATEWAY_API_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(tools, "GATEWAY_API_KINDS", ("gateways", "httproutes"))
        monkeypatch.setattr(tools, "GATEWAY_API", tmp_path / "cache" / "gateway-api.yaml")
        yield folder
        server.shutdown()


def test_the_gateway_api_is_downloaded_once_and_checked(gateway_api, monkeypatch):
    whole = b"kind: gateways\n---\nkind: httproutes\n"
    monkeypatch.setattr(tools, "GATEWAY_API_SHA256", hashlib.sha256(whole).hexdigest())
    assert tools.ensure_gateway_api() == f"{tools.GATEWAY_API_VERSION}, from its download, checked"
    assert tools.GATEWAY_API.read_bytes() == whole
    next(gateway_api.iterdir()).unlink()
    assert tools.ensure_gateway_api() == f"{tools.GATEWAY_API_VERSION}, in the cache"


def test_a_changed_gateway_api_is_refused(gateway_api):
    with pytest.raises(Failure, match="the Gateway API v1.* is not what was pinned"):
        tools.ensure_gateway_api()
    assert not tools.GATEWAY_API.exists()


def test_where_no_download_answers_the_gateway_api_comes_from_its_go_module(tmp_path, monkeypatch):
    with socket.socket() as nobody:  # bound, but it does not listen
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setattr(tools, "GATEWAY_API_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setattr(tools, "GATEWAY_API", tmp_path / "gateway-api.yaml")
        assert tools.ensure_gateway_api() == f"{tools.GATEWAY_API_VERSION}, from its Go module, checked"
    kinds = [document["spec"]["names"]["plural"] for document in yaml.safe_load_all(tools.GATEWAY_API.read_text())]
    assert tuple(kinds) == tools.GATEWAY_API_KINDS


# ── images ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fingerprint_changes_with_any_file_its_name_and_its_mode(tmp_path):
    seen = set()
    file = tmp_path / "one"
    for change in (
        lambda: file.write_text("a"),
        lambda: file.write_text("b"),
        lambda: file.chmod(0o755),
        lambda: file.rename(tmp_path / "two"),
    ):
        change()
        seen.add(images.fingerprint(tmp_path))
    assert len(seen) == 4
    assert images.fingerprint(tmp_path) in seen  # and with nothing else


@pytest.mark.cluster
def test_a_damaged_archive_in_the_cache_is_removed_and_said(tmp_path, monkeypatch, engine_ready):
    monkeypatch.setattr(images, "ARCHIVES", tmp_path)
    archive = tmp_path / "node-000.tar"
    archive.write_bytes(b"half a tar")
    with pytest.raises(Failure, match="node-000.tar cannot be loaded"):
        images.load(archive)
    assert not archive.exists()


@pytest.mark.cluster
def test_a_bundle_without_our_node_is_refused(tmp_path, monkeypatch, engine_ready):
    bundle = tmp_path / "bundle.tar"
    images.docker("save", "--output", bundle, "workshop/base:1")
    monkeypatch.setenv("WORKSHOP_BUNDLE", str(bundle))
    monkeypatch.setattr(images, "ARCHIVES", tmp_path / "none")
    monkeypatch.setitem(images.NODE, "tag", "workshop/node:never")
    monkeypatch.setitem(images.NODE, "pull", "workshop/node:never")
    with pytest.raises(Failure, match="holds no node image for this version"):
        images.fetch_node()


# ── cluster ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ("state", "a", "s2", "my-state"))
def test_a_good_cluster_name_is_taken(name, monkeypatch):
    monkeypatch.setenv("KIND_CLUSTER_NAME", name)
    assert cluster.name() == name


BAD_NAMES = ["a;reboot", "$(id)", "A", "-a", "a-", "a" * 31, "ä", "a b", "a\nb", "../a", "1a", "a.b", "a_b"]
LETTERS = random.Random(1)
BAD_NAMES += ["".join(LETTERS.choices(string.printable, k=LETTERS.randint(1, 80))) for _ in range(200)]


def test_a_bad_cluster_name_is_refused(monkeypatch):
    allowed = set(string.ascii_lowercase + string.digits + "-")
    for bad in BAD_NAMES:
        monkeypatch.setenv("KIND_CLUSTER_NAME", bad)
        if set(bad) <= allowed and bad[0].isalpha() and bad[-1] != "-" and len(bad) <= 30:
            continue  # chance made a good one
        with pytest.raises(Failure, match="cannot name a cluster"):
            cluster.name()


@pytest.mark.parametrize(("version", "there"), (("1", True), ("2", False)))
def test_only_a_cgroup_v1_host_gets_the_cgroup_v1_setting(version, there):
    config = yaml.safe_load(cluster.kind_config((8081, 8444), version, "/a-volume"))
    kubelet = yaml.safe_load(config["kubeadmConfigPatches"][0])
    assert ("failCgroupV1" in kubelet) == there
    assert kubelet.get("failCgroupV1", False) is False


def test_the_cluster_publishes_on_the_loopback_address_only_and_never_8080():
    config = yaml.safe_load(cluster.kind_config((8081, 8444), "2", "/a-volume"))
    mappings = [mapping for node in config["nodes"] for mapping in node.get("extraPortMappings", ())]
    assert {mapping["listenAddress"] for mapping in mappings} == {"127.0.0.1"} and len(mappings) == 2
    assert config["networking"]["apiServerAddress"] == "127.0.0.1"


def test_every_node_sees_the_same_directory():
    config = yaml.safe_load(cluster.kind_config((8081, 8444), "2", "/a-volume"))
    mounts = [node["extraMounts"] for node in config["nodes"]]
    assert mounts == [[{"hostPath": "/a-volume", "containerPath": cluster.SHARED}]] * 3


def test_a_cluster_to_be_thrown_away_is_one_node_that_publishes_nothing():
    whole = yaml.safe_load(cluster.kind_config((8081, 8444), "1", "/a-volume"))
    single = yaml.safe_load(cluster.kind_config(None, "1", "/a-volume"))
    (node,) = single.pop("nodes")
    assert node == {key: value for key, value in whole.pop("nodes")[0].items() if key != "extraPortMappings"}
    assert single == whole


@pytest.mark.cluster
@pytest.mark.usefixtures("cluster")
def test_a_node_of_another_version_is_told_from_ours(monkeypatch):
    assert not any(map(cluster.outdated, cluster.nodes()))
    with monkeypatch.context() as change:
        change.setattr(images, "node_mark", lambda: "another")
        assert all(map(cluster.outdated, cluster.nodes()))
    monkeypatch.setattr(cluster, "SHARED", "/elsewhere")
    assert all(map(cluster.outdated, cluster.nodes()))


@pytest.fixture
def busy_port():
    """A loopback port that this process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_that_was_asked_for_is_named_with_its_owner(busy_port, monkeypatch):
    monkeypatch.setenv("WORKSHOP_HTTP_PORT", str(busy_port))
    with pytest.raises(Failure, match=rf"Port {busy_port} on 127.0.0.1 is taken by .*\(process {os.getpid()}\)"):
        cluster.choose_ports()


@pytest.mark.parametrize("value", ("8080", "0", "65536", "-1", "http", "80; reboot", ""))
def test_a_port_that_is_none_is_refused(value, monkeypatch):
    monkeypatch.setenv("WORKSHOP_HTTP_PORT", value)
    with pytest.raises(Failure, match="is no port for the Ingress"):
        cluster.choose_ports()


def test_a_taken_pair_is_passed_over(monkeypatch):
    monkeypatch.delenv("WORKSHOP_HTTP_PORT", raising=False)
    http, https = cluster.choose_ports()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", http))
        listener.listen()
        assert http not in cluster.choose_ports()


def test_a_kubeconfig_is_private_and_never_written_through_a_link(tmp_path):
    victim, target = tmp_path / "victim", tmp_path / "kubeconfig"
    victim.write_text("mine")
    target.symlink_to(victim)
    cluster._write_private(target, "secret")
    assert victim.read_text() == "mine" and target.read_text() == "secret"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600 and not target.is_symlink()


@pytest.mark.cluster
def test_our_label_is_on_the_node_image(engine_ready):
    assert images.label(images.own_node(), LABEL) == OWNER


@pytest.mark.cluster
def test_a_missing_node_image_says_how_to_get_it(monkeypatch, engine_ready):
    monkeypatch.setattr(images, "own_node", lambda: "workshop/node-of-nobody:never")
    monkeypatch.setenv("KIND_CLUSTER_NAME", "never-made")
    with pytest.raises(Failure, match="node-of-nobody:never is not in the engine") as told:
        cluster.up()
    assert "scripts/setup" in told.value.remedy


@pytest.mark.cluster
def test_a_missing_gateway_api_says_how_to_get_it(tmp_path, monkeypatch, engine_ready):
    monkeypatch.setattr(tools, "GATEWAY_API", tmp_path / "gateway-api.yaml")
    monkeypatch.setenv("KIND_CLUSTER_NAME", "never-made")
    with pytest.raises(Failure, match="The Gateway API is not in the cache") as told:
        cluster.up()
    assert "scripts/setup" in told.value.remedy


def test_another_gateway_api_makes_a_cluster_want_mending(tmp_path, monkeypatch):
    before = cluster._wanted()
    monkeypatch.setattr(tools, "GATEWAY_API", tmp_path / "gateway-api-v0.yaml")
    assert cluster._wanted() != before


def test_the_images_of_the_list_are_all_built_from_a_folder():
    assert set(images.WORKSHOP) == {
        path.parent.name for path in images.IMAGES.glob("*/Dockerfile") if path.parent.name != "node"
    }
    assert all(image["tag"].startswith("workshop/") for image in images.WORKSHOP.values())


def test_what_an_image_shares_with_the_environment_has_the_version_that_is_pinned():
    shared = images.WORKSHOP["operator"]["wheels"]
    assert shared == [tools.pinned(wheel.split("==")[0]) for wheel in shared]


@pytest.mark.cluster
def test_the_engine_shows_our_images_with_the_right_architecture(engine_ready):
    shown = json.loads(images.docker("image", "inspect", images.own_node()).stdout)[0]
    assert shown["Architecture"] == engine_ready["Arch"]


# ── The learner's copy ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_learners_copy_shows_no_output_and_keeps_their_work(tmp_path, monkeypatch):
    monkeypatch.setattr(classroom, "WORK", tmp_path)
    assert classroom.copy_lessons() == len(lessons.notebooks())
    first = tmp_path / lessons.notebooks()["00"].name
    assert all(not cell.get("outputs") for cell in json.loads(first.read_text())["cells"])
    first.write_text("the learner's")
    assert classroom.copy_lessons() == 0 and first.read_text() == "the learner's"
    assert classroom.copy_lessons(fresh=True) == len(lessons.notebooks()) and first.read_text() != "the learner's"


def test_a_link_in_the_learners_copy_is_replaced_and_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(classroom, "WORK", tmp_path / "work")
    (tmp_path / "work").mkdir()
    for name in ("lab.py", "pictures"):
        (tmp_path / "work" / name).symlink_to(classroom.NOTEBOOKS / name)
    classroom.copy_lessons()
    assert not any(path.is_symlink() for path in (tmp_path / "work").iterdir())
    assert (tmp_path / "work/lab.py").read_text() == (classroom.NOTEBOOKS / "lab.py").read_text()


# ── Removal ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.cluster
def test_a_node_that_was_killed_with_something_frozen_in_it_can_be_removed(engine_ready):
    name = f"test-frozen-{os.getpid()}"
    label = f"--label={LABEL}={OWNER}"
    command = ["sh", "-c", "tail -f /dev/null & wait"]
    images.docker("run", "--detach", label, f"--name={name}", "workshop/base:1", *command)
    try:
        main = images.docker("inspect", "--format={{.State.Pid}}", name).stdout.strip()
        child = Path(f"/proc/{main}/task/{main}/children").read_text().split()[0]
        places = {line.split(":")[1]: line.split(":")[2] for line in Path(f"/proc/{child}/cgroup").read_text().split()}
        version_1 = "freezer" in places
        root = Path("/sys/fs/cgroup/freezer" if version_1 else "/sys/fs/cgroup")
        inner = root / places["freezer" if version_1 else ""].lstrip("/") / "inner"
        inner.mkdir()
        (inner / "cgroup.procs").write_text(child)
        (inner / ("freezer.state" if version_1 else "cgroup.freeze")).write_text("FROZEN" if version_1 else "1")
    finally:
        cluster.remove(name)
    assert images.docker("ps", "--all", "--quiet", f"--filter=name={name}").stdout == ""
