"""votes: a small web application that counts votes. Its settings are environment variables:

VOTES_STORE            where votes are kept: memory, file:/data/votes.json or mariadb://user@host:3306/database
VOTES_PASSWORD_FILE    the file that holds the password of the MariaDB user
VOTES_CHOICES          what people can vote for: words, separated by commas
VOTES_VERSION          shown on the page, like the accent VOTES_COLOUR (any CSS colour), so that a rollout can be seen
VOTES_STARTUP_SECONDS  how long the app pretends to be starting
"""

import fcntl
import json
import os
import re
import threading
import time

from flask import Flask, redirect, render_template, request


def setting(name, default, pattern, meaning):
    """Return an environment variable; end the app with one sentence if its value does not match the pattern."""
    value = os.environ.get(name, default)
    if not re.fullmatch(pattern, value):
        raise SystemExit(f"{name} must be {meaning}.")  # without the value, which could hold a password
    return value


URL = "mariadb://[^/:@]+@[^/:@]+:[0-9]{1,5}/[^/:@]+"  # no place for a password, because the page shows the URL
STORE = setting("VOTES_STORE", "memory", f"memory|file:/.+|{URL}", "memory, file:/path or mariadb://user@host:port/db")
KIND = STORE.split(":")[0]
PASSWORD_FILE = setting("VOTES_PASSWORD_FILE", "", ".+" if KIND == "mariadb" else ".*", "the path of a file")
CHOICES = setting("VOTES_CHOICES", "cats,dogs", r"[\w-]+(,[\w-]+)*", "words, separated by commas").split(",")
VERSION = os.environ.get("VOTES_VERSION", "1")
COLOUR = os.environ.get("VOTES_COLOUR", "#0d9488")
STARTED = time.monotonic()
STARTUP_SECONDS = float(setting("VOTES_STARTUP_SECONDS", "0", r"\d+(\.\d+)?", "a number of seconds, 0 or more"))
POD = os.environ.get("HOSTNAME") or os.uname().nodename

# The three stores. Each is a function that counts a vote, if it is given one, and returns {choice: total} once the vote
# is safe. Choices without votes may be missing. A store that does not work raises OSError or ValueError.

memory, memory_lock = {}, threading.Lock()


def memory_store(vote=None):
    with memory_lock:  # one thread at a time, or two votes at once might count as one
        if vote:
            memory[vote] = memory.get(vote, 0) + 1
        return dict(memory)


def file_store(vote=None):
    path = STORE.removeprefix("file:")
    with open(path + ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one thread of one process at a time, until this block ends
        totals = {}  # no file: nobody has voted yet
        if os.path.lexists(path):
            with open(path) as file:
                totals = json.load(file)
        if not isinstance(totals, dict) or not all(type(total) is int for total in totals.values()):
            raise ValueError("the file holds something other than totals")
        if vote:
            totals[vote] = totals.get(vote, 0) + 1
            with open(path + ".new", "w") as file:
                json.dump(totals, file)
                file.flush()
                os.fsync(file.fileno())  # on the disk, not just on its way there
            os.replace(path + ".new", path)  # in one step: readers, and a crash, meet the old file or the new one
        return totals


def mariadb_store(vote=None):
    import pymysql  # here, because the other stores do without it

    user, host, port, name = re.split("[/:@]+", STORE)[1:]
    with open(PASSWORD_FILE) as file:  # read each time: a new password needs no restart
        password = file.read().strip()
    try:
        limits = {"connect_timeout": 2, "read_timeout": 2}  # seconds
        with pymysql.connect(host=host, port=int(port), user=user, password=password, database=name, **limits) as db:
            cursor = db.cursor()
            if not cursor.execute("SHOW TABLES LIKE 'votes'"):
                cursor.execute("CREATE TABLE IF NOT EXISTS votes (choice VARCHAR(99) PRIMARY KEY, total INT NOT NULL)")
            if vote:
                cursor.execute("INSERT INTO votes VALUES (%s, 1) ON DUPLICATE KEY UPDATE total = total + 1", vote)
            cursor.execute("SELECT choice, total FROM votes")
            db.commit()  # only now is the vote safe
            return dict(cursor.fetchall())
    except pymysql.MySQLError as error:
        raise OSError(*error.args) from error


ask_store = {"memory": memory_store, "file": file_store, "mariadb": mariadb_store}[KIND]
app = Flask(__name__)
app.json.sort_keys = False  # the order below, in every answer


@app.before_request
def pretend_to_start():
    if time.monotonic() < STARTED + STARTUP_SECONDS and request.path != "/healthz":
        return {"error": "The app is still starting."}, 503


@app.after_request
def sign(response):
    response.headers.update({"X-Pod": POD, "Cache-Control": "no-store"})
    return response


@app.errorhandler(OSError)
@app.errorhandler(ValueError)
def store_failed(error):
    return {"error": f"The store {STORE} does not work: {error}."}, 503


@app.get("/")
def page():
    return render_template("index.html", store=STORE, colour=COLOUR, answer=totals())


@app.get("/api/totals")
def totals():
    found = ask_store()
    counts = {choice: found.get(choice, 0) for choice in CHOICES}
    return {"pod": POD, "version": VERSION, "store": KIND, "totals": counts}


@app.post("/vote/<choice>")
def vote(choice):
    if choice not in CHOICES:
        return {"error": f"There is no choice '{choice}': vote for {' or '.join(CHOICES)}."}, 404
    total = ask_store(choice)[choice]
    if "text/html" in request.headers.get("Accept", ""):
        return redirect("/", code=303)  # so that reloading the page does not vote again
    return {"pod": POD, "choice": choice, "total": total}


@app.get("/healthz")
def healthz():
    return {"status": "alive"}


@app.get("/readyz")
def readyz():
    ask_store()
    if app.config.get("STOPPING"):  # gunicorn.conf.py sets it
        return {"error": "The app is shutting down."}, 503
    return {"status": "ready"}
