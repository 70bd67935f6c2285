"""Where a learner works: the cleared copy of the lessons, and the JupyterLab that serves it."""

import json
import os
import secrets
import shutil
import subprocess
import urllib.error
import urllib.request
import webbrowser
from contextlib import suppress
from pathlib import Path

from kit import ROOT, STATE, cluster, tools
from kit.console import Failure, until

NOTEBOOKS = ROOT / "notebooks"
WORK = ROOT / "work"

# JupyterLab would otherwise ask at the first start whether it may fetch news.
SETTINGS = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}


def copy_lessons(fresh: bool = False) -> int:
    """Put lessons without their outputs into work/, beside a copy of what they share.

    A stored output would spoil the prediction, and a learner's run must not overwrite what the tests compare with.

    Args:
        fresh: also replace the lessons that are there already.

    Returns:
        How many lessons were written.
    """
    import nbformat

    WORK.mkdir(exist_ok=True)
    written = 0
    for source in sorted(NOTEBOOKS.iterdir()):
        target = WORK / source.name
        if target.is_symlink():  # a copy through it would write into what it points to
            target.unlink()
        if source.suffix == ".ipynb":
            if fresh or not target.exists():
                lesson = nbformat.read(source, as_version=4)
                for cell in lesson.cells:
                    if cell.cell_type == "code":
                        cell.outputs, cell.execution_count = [], None
                nbformat.write(lesson, target)
                written += 1
        elif source.is_dir() and not source.name.startswith((".", "__")):
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copy(source, target)  # not a link: JupyterLab shows no picture that lies outside its folder
    return written


def environment() -> dict:
    """The environment of JupyterLab and of the lessons: our cluster and tools, nothing of the person's Jupyter."""
    jupyter = STATE / "jupyter"
    profile = jupyter / "ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text('c.InteractiveShellApp.extensions = ["guide"]\n')
    return os.environ | {
        "KUBECONFIG": str(cluster.kubeconfig()),
        "KIND_CLUSTER_NAME": cluster.name(),
        "JUPYTER_CONFIG_DIR": str(jupyter / "config"),
        "JUPYTER_DATA_DIR": str(jupyter / "data"),
        "JUPYTER_RUNTIME_DIR": str(jupyter / "runtime"),
        "IPYTHONDIR": str(jupyter / "ipython"),
    }


def serve(browser: bool) -> None:
    """Run JupyterLab on the loopback address until it ends or is interrupted; print its URL once it answers.

    Raises:
        Failure: it does not come up; its log says why.
    """
    overrides = tools.ENVIRONMENT / "share/jupyter/lab/settings/overrides.json"
    overrides.parent.mkdir(parents=True, exist_ok=True)
    overrides.write_text(json.dumps(SETTINGS))
    token, port, log = secrets.token_urlsafe(24), _free_port(), STATE / "jupyter.log"
    command = [
        tools.BIN / "jupyter-lab",
        "--no-browser",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={WORK}",
        "--ServerApp.open_browser=False",
        *(["--allow-root"] if os.getuid() == 0 else []),
    ]
    with open(log, "w") as file:
        process = subprocess.Popen(
            command,
            env=environment() | {"JUPYTER_TOKEN": token},
            cwd=WORK,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        _await(process, port, log)
        first = min(path.name for path in WORK.glob("*.ipynb"))
        url = f"http://127.0.0.1:{port}/lab/tree/{first}?token={token}"
        print(f"\nThe workshop is at\n\n    {url}\n\nCtrl-C stops it.", flush=True)
        if browser:
            webbrowser.open(url)
        process.wait()
    except KeyboardInterrupt:
        print("\nJupyterLab is stopped. The cluster goes on running; scripts/cluster down removes it.")
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    """JupyterLab's usual port 8888, or the next free one."""
    return next(port for port in range(8888, 9888) if not cluster.taken(port))


def _await(process: subprocess.Popen, port: int, log: Path) -> None:
    """Wait until the server answers.

    Raises:
        Failure: it ended, or does not answer within a minute.
    """

    def answers() -> bool:
        url = f"http://127.0.0.1:{port}/api"
        with suppress(TimeoutError, urllib.error.URLError, ConnectionError), urllib.request.urlopen(url, timeout=2):
            return True
        return False

    if not until(lambda: answers() or process.poll() is not None, 60) or process.poll() is not None:
        last = (log.read_text().strip().splitlines() or ["it wrote nothing"])[-1]
        raise Failure(f"JupyterLab did not start: {last}", f"Read {log}.")
