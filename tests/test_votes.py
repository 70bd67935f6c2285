"""The votes application: what it answers, what its stores keep, how it starts and stops. Nothing here is a mock."""

import contextlib
import http.client
import importlib.util
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

VOTES = Path(__file__).parents[1] / "images" / "votes"
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def environment(**settings):
    """Return this process's environment with no settings of the app but these: STORE for VOTES_STORE and so on."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VOTES_")}
    wanted = {f"VOTES_{name}": value for name, value in settings.items()}
    return kept | wanted | {"HOSTNAME": "votes-0", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def start(monkeypatch):
    """Return a function that loads the app anew, with the given settings, and returns a test client of it."""

    def load(**settings):
        monkeypatch.setattr(os, "environ", environment(**settings))
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        spec = importlib.util.spec_from_file_location("votes_app", VOTES / "app.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "votes_app", module)  # where Flask looks for the folder of the templates
        spec.loader.exec_module(module)
        return module.app.test_client()

    return load


@contextmanager
def gunicorn(**settings):
    """Run the app as its container does, but on a free port; yield the process and the port."""
    listener = socket.create_server(("127.0.0.1", 0))  # open before gunicorn is: no request comes too early
    port, number = listener.getsockname()[1], listener.fileno()
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--bind", f"fd://{number}", "app:app"],
        cwd=VOTES,
        env=environment(**settings),
        pass_fds=[number],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    listener.close()
    try:
        yield process, port
    finally:
        with contextlib.suppress(ProcessLookupError):  # it is gone already, and its worker with it
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ask(port, path, method="GET"):
    """Return the status and the JSON that the app answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    assert response.getheader("Connection") == "close"  # so that the next request may reach another Pod
    return response.status, json.load(response)


def until(condition, seconds=5):
    """Return the first true value of the condition; fail if there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in {seconds} seconds"
        time.sleep(0.02)
    return value


# What it answers


def test_the_page_shows_what_matters_and_fetches_nothing(start):
    client = start(CHOICES="cats,dogs", VERSION="7", COLOUR="rebeccapurple")
    client.post("/vote/dogs")
    page = client.get("/", headers=BROWSER).text
    assert '<html lang="en">' in page
    assert "<h1>Cats or dogs?</h1>" in page
    assert "--accent: rebeccapurple;" in page
    assert re.findall(r"width: (\d+)%", page) == ["0", "100"]
    assert re.findall(r'method="post" action="(.+?)"', page) == ["/vote/cats", "/vote/dogs"]
    assert re.findall(r"<dd.*?>(.+?)</dd>", page) == ["votes-0", "the memory of this process", "7"]
    assert re.findall(r'(?:href|src)="(.*?)"|(url\(|@import|https?:)', page) == [("data:,", ""), ("/", "")]


def test_a_vote_is_counted_and_answered_in_json(start):
    client = start()
    assert client.post("/vote/cats").json == {"pod": "votes-0", "choice": "cats", "total": 1}
    assert client.post("/vote/cats").json == {"pod": "votes-0", "choice": "cats", "total": 2}


def test_a_browser_is_sent_back_to_the_page(start):
    client = start()
    answer = client.post("/vote/cats", headers=BROWSER)
    assert (answer.status_code, answer.location) == (303, "/")
    assert client.get("/api/totals").json["totals"]["cats"] == 1


def test_an_unknown_choice_is_refused(start):
    answer = start().post("/vote/birds")
    assert answer.status_code == 404
    assert answer.json == {"error": "There is no choice 'birds': vote for cats or dogs."}


def test_totals_come_in_a_stable_order(start):
    expected = '{"pod":"votes-0","version":"1","store":"memory","totals":{"dogs":0,"cats":0,"birds":0}}\n'
    assert start(CHOICES="dogs,cats,birds").get("/api/totals").text == expected


@pytest.mark.parametrize("path", ["/", "/api/totals", "/healthz", "/readyz", "/vote/cats", "/no-such-page"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_every_answer_names_the_pod(start, method, path):
    assert start().open(path, method=method).headers["X-Pod"] == "votes-0"


@pytest.mark.parametrize(
    "settings",
    [
        {"STORE": "redis"},
        {"STORE": "file:relative.json"},
        {"STORE": "mariadb://db/votes", "PASSWORD_FILE": "/password"},
        {"STORE": "mariadb://user:secret@db:3306/votes", "PASSWORD_FILE": "/password"},
        {"STORE": "mariadb://user@db:3306/votes"},
        {"STARTUP_SECONDS": "soon"},
        {"STARTUP_SECONDS": "-1"},
        {"CHOICES": "cats,,dogs"},
    ],
)
def test_a_wrong_setting_ends_the_app_with_one_sentence(start, settings):
    with pytest.raises(SystemExit, match=r"^VOTES_[A-Z_]+ must be .+\.$") as end:
        start(**settings)
    assert "secret" not in str(end.value)


# What its stores keep


def test_the_file_store_outlives_the_process(start, tmp_path):
    place = f"file:{tmp_path}/votes.json"
    start(STORE=place).post("/vote/cats")
    client = start(STORE=place)
    assert client.get("/readyz").status_code == 200
    assert client.get("/api/totals").json["store"] == "file"
    assert client.get("/api/totals").json["totals"] == {"cats": 1, "dogs": 0}


VOTER = """
import sys, app
client = app.app.test_client()
print("ready", flush=True)
sys.stdin.readline()
sys.exit(any(client.post("/vote/cats").status_code != 200 for _ in range(20)))
"""


def test_processes_that_share_a_file_lose_no_vote(tmp_path):
    store = tmp_path / "votes.json"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", VOTER]
    settings = environment(STORE=f"file:{store}")
    voters = [subprocess.Popen(command, cwd=VOTES, env=settings, **pipes) for _ in range(2)]
    assert [voter.stdout.readline() for voter in voters] == ["ready\n", "ready\n"]
    for voter in voters:
        voter.stdin.write("go\n")
        voter.stdin.flush()
    for voter in voters:
        voter.communicate(timeout=10)
    assert [voter.returncode for voter in voters] == [0, 0]
    assert json.loads(store.read_text()) == {"cats": 40}


@pytest.mark.parametrize("content", [b"", b'{"cats": 1', b'["cats"]', b'{"cats": "many"}', b"\xff\xfe"])
def test_a_damaged_file_is_an_error_and_stays_as_it_is(start, tmp_path, content):
    store = tmp_path / "votes.json"
    store.write_bytes(content)
    client = start(STORE=f"file:{store}")
    for answer in [client.get("/readyz"), client.get("/"), client.get("/api/totals"), client.post("/vote/cats")]:
        assert answer.status_code == 503
        assert answer.json["error"].startswith(f"The store file:{store} does not work: ")
    assert store.read_bytes() == content
    assert client.get("/healthz").status_code == 200  # to restart the process would mend nothing


def test_a_missing_directory_is_an_error(start, tmp_path):
    answer = start(STORE=f"file:{tmp_path}/missing/votes.json").get("/readyz")
    assert answer.status_code == 503
    assert "No such file or directory" in answer.json["error"]


def test_a_vote_replaces_the_file_in_one_step(start, tmp_path):
    store = tmp_path / "votes.json"
    client = start(STORE=f"file:{store}")
    client.post("/vote/cats")
    with store.open() as opened_before:
        client.post("/vote/cats")
        assert json.load(opened_before) == {"cats": 1}
    assert json.loads(store.read_text()) == {"cats": 2}


def test_a_vote_the_disk_refuses_is_not_acknowledged(start, tmp_path):
    client = start(STORE=f"file:{tmp_path}/votes.json")
    client.post("/vote/cats")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # to this process, a disk with no room left
    try:
        answer = client.post("/vote/cats")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert answer.status_code == 503
    assert client.post("/vote/cats").json["total"] == 2


@pytest.mark.parametrize(("listens", "reason"), [(False, "Connection refused"), (True, "timed out")])
def test_a_database_that_does_not_answer_is_said_in_time(start, tmp_path, listens, reason):
    # No MariaDB here: lesson 06 counts votes in a real one.
    password = tmp_path / "password"
    with ThreadPoolExecutor() as pool, socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()  # and never say a word
        place = f"mariadb://learner@127.0.0.1:{server.getsockname()[1]}/votes"
        client = start(STORE=place, PASSWORD_FILE=str(password))
        assert str(password) in client.get("/readyz").json["error"]  # there is no such file yet
        password.write_text("learned\n")
        answer = pool.submit(client.get, "/readyz").result(timeout=3)
        assert answer.status_code == 503
        assert reason in answer.json["error"]


# How it starts and stops


def test_while_it_starts_only_healthz_answers():
    began = time.monotonic()
    with gunicorn(STARTUP_SECONDS="2") as (_, port):
        assert ask(port, "/healthz") == (200, {"status": "alive"})
        starting = (503, {"error": "The app is still starting."})
        assert ask(port, "/readyz") == starting
        assert ask(port, "/api/totals") == starting
        assert ask(port, "/vote/cats", "POST") == starting
        until(lambda: ask(port, "/readyz") == (200, {"status": "ready"}))
        assert time.monotonic() - began > 2
        assert ask(port, "/api/totals")[1]["totals"] == {"cats": 0, "dogs": 0}


def test_one_process_counts_what_is_in_memory():
    with gunicorn() as (process, port), ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda _: ask(port, "/vote/cats", "POST"), range(16)))
        assert sorted(answer["total"] for _, answer in answers) == list(range(1, 17))
        process.terminate()
        assert process.communicate(timeout=5)[1].count("Booting worker") == 1


def opened(fifo):
    """Return a file descriptor to write to the named pipe, or None while nobody reads from it."""
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/vote/cats", (200, {"pod": "votes-0", "choice": "cats", "total": 42})),
        ("GET", "/readyz", (503, {"error": "The app is shutting down."})),
    ],
)
def test_sigterm_lets_a_request_in_flight_finish(tmp_path, method, path, expected):
    slow = tmp_path / "votes.json"
    os.mkfifo(slow)  # a store that answers when the test wants it to
    with ThreadPoolExecutor() as pool, gunicorn(STORE=f"file:{slow}") as (process, port):
        answer = pool.submit(ask, port, path, method)
        store = until(lambda: opened(slow))  # the request is in flight
        process.terminate()
        until(lambda: refused(port))  # the app knows of it
        os.write(store, b'{"cats": 41}')
        os.close(store)
        assert answer.result() == expected
        assert process.wait(timeout=5) == 0


def test_a_wrong_setting_ends_gunicorn_too():
    with gunicorn(STORE="redis") as (process, _):
        assert process.wait(timeout=5) == 1
        assert re.fullmatch(r"VOTES_STORE must be .+\.\n", process.stderr.read())
