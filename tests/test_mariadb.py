"""images/mariadb: a database that makes itself once, keeps what it took, and leaves when it is told to."""

import os

import pytest
from kit import LABEL, OWNER, console, engine, images
from kit.images import docker

pytestmark = pytest.mark.cluster
IMAGE = images.WORKSHOP["mariadb"]["tag"]
PASSWORD = 'it\'s a \\ demo "only"'
SETTINGS = {"DATABASE": "votes", "USER": "votes", "PASSWORD_FILE": "/password/password"}


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a container of the image on one and the same volume; all are removed afterwards."""
    engine.look()
    images.ensure_workshop()
    name = f"test-mariadb-{os.getpid()}"
    (tmp_path / "password").write_text(PASSWORD + "\n")
    os.chmod(tmp_path, 0o755)
    docker("volume", "create", f"--label={LABEL}={OWNER}", name)

    def begin(**settings):
        docker("rm", "--force", name, check=False)
        variables = [f"--env=MARIADB_{key}={value}" for key, value in settings.items()]
        where = [f"--volume={tmp_path}:/password:ro", f"--volume={name}:/data"]
        docker("run", "--detach", "--network=none", f"--label={LABEL}={OWNER}", f"--name={name}",
               "--cap-drop=ALL", "--security-opt=no-new-privileges", *where, *variables, IMAGE)  # fmt: skip
        return name

    yield begin
    docker("rm", "--force", name, check=False)
    docker("volume", "rm", name)


def sql(name, statement, *options):
    """What the database answers, as its administrator over the socket unless options say otherwise."""
    return docker("exec", name, "mariadb", "--skip-column-names", *options, f"--execute={statement}", check=False)


def answers(name):
    """Wait until it answers."""
    assert console.until(lambda: sql(name, "SELECT 1").returncode == 0, 60), docker("logs", name).stderr


def test_it_makes_a_database_and_a_user_and_keeps_what_they_took(start):
    name = start(**SETTINGS)
    answers(name)
    visitor = ["--host=127.0.0.1", "--user=votes", f"--password={PASSWORD}", "votes"]
    made = sql(name, "CREATE TABLE kept (word TEXT); INSERT INTO kept VALUES ('here'); SELECT CURRENT_USER()", *visitor)
    assert made.stdout == "votes@%\n", made.stderr
    assert "Access denied" in sql(name, "SELECT 1", "--host=127.0.0.1", "--user=votes", "--password=wrong").stderr
    assert "denied" in sql(name, "SELECT * FROM mysql.global_priv", *visitor).stderr

    docker("stop", "--time=30", name)
    assert docker("inspect", "--format={{.State.ExitCode}}", name).stdout == "0\n"
    answers(start())  # the volume is all it needs: not even the settings
    assert sql(name, "SELECT word FROM kept", "votes").stdout == "here\n"


def test_one_that_was_killed_while_it_made_itself_begins_anew(start):
    name = start(**SETTINGS)
    assert console.until(lambda: docker("exec", name, "test", "-d", "/data/new", check=False).returncode == 0, 20)
    docker("kill", "--signal=KILL", name)
    answers(start(**SETTINGS))
    assert sql(name, "SHOW DATABASES LIKE 'votes'").stdout == "votes\n"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"USER": "votes"}, "MARIADB_DATABASE: must be set with MARIADB_USER"),
        ({"USER": "votes", "DATABASE": "votes"}, "MARIADB_PASSWORD_FILE: must be set with MARIADB_USER"),
        (SETTINGS | {"PASSWORD_FILE": "/nowhere"}, "/nowhere: No such file"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(start, settings, said):
    name = start(**settings)
    assert docker("wait", name, timeout=20).stdout != "0\n"
    assert said in docker("logs", name).stderr
    answers(start(**SETTINGS))
