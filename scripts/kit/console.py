"""Talking to the person at the terminal: failures in one sentence, steps side by side, programs run quietly."""

import contextlib
import fcntl
import graphlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path


class Failure(Exception):
    """What went wrong, in one sentence, and the remedy, in one line. Shown without a traceback."""

    def __init__(self, cause: str, remedy: str):
        super().__init__(cause)
        self.cause, self.remedy = cause, remedy


def main(command: Callable[[], None]) -> None:
    """Run a script's command and leave with its exit status: 0 done, 1 failed, 2 called wrongly (by argparse)."""
    # Stopping a script cleans up as Ctrl-C does, even where a background job would have ignored Ctrl-C.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    try:
        command()
    except Failure as failure:
        print(f"\n✗ {failure.cause}\n  → {failure.remedy}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\n✗ Interrupted. Nothing is left half-made; the same command goes on from here.", file=sys.stderr)
        sys.exit(1)
    except PermissionError as error:
        print(
            f"\n✗ {error.filename} may not be written or read by you.\n  → Make it yours (chown), or move the "
            "clone or XDG_CACHE_HOME to where you may write.",
            file=sys.stderr,
        )
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        print(
            f"\n✗ {error.filename}: {error.strerror}.\n  → Mend that path, or move the clone or XDG_CACHE_HOME "
            "to a disk that is writable and has room.",
            file=sys.stderr,
        )
        sys.exit(1)


# ── Programs ──────────────────────────────────────────────────────────────────────────────────────────────────────

# What hides the reason why a Go program failed: where in its source it was, a function and a line of a file, and what
# it told of its ordinary work (klog's I). kubeadm tells dozens of both.
CHATTER = re.compile(r"^\S+\n\t\S+\.(go|s):\d+.*\n?|^I\d{4} \d\d:.*\n?", re.MULTILINE)

_running: set[subprocess.Popen] = set()
_stopping = threading.Event()


def run(
    arguments: list,
    *,
    remedy: str = "Read the last lines above it, mend what they name, and run the same command again.",
    check: bool = True,
    timeout: float | None = None,
    on_line: Callable[[str], None] | None = None,
    **options,
) -> subprocess.CompletedProcess:
    """Run a program quietly, with its output kept.

    Args:
        arguments: the program and its arguments; every one is passed through `str`.
        remedy: what the person should do if the program fails.
        check: raise when the exit status is not 0.
        timeout: seconds until the program is killed.
        on_line: called with every line of its standard error as it comes.
        options: `input` (text), `stdin`, `cwd`, `env`, as for `subprocess.Popen`.

    Returns:
        returncode, stdout and stderr (text).

    Raises:
        Failure: it is not installed, took too long, or failed (with the last lines it wrote).
    """
    arguments = [str(argument) for argument in arguments]
    name, text = Path(arguments[0]).name, options.pop("input", None)
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE if text is not None else options.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # so that what it started ends with it
            **options,
        )
    except FileNotFoundError:
        raise Failure(f"{name} is not on PATH ({os.environ.get('PATH', '')}).", "Run scripts/setup.") from None
    _running.add(process)
    if _stopping.is_set():
        _end(process)
    try:
        if on_line:
            reader = threading.Thread(target=lambda: stdout.append(process.stdout.read()))
            stdout, lines = [], []
            reader.start()
            for line in process.stderr:
                lines.append(line)
                on_line(line.rstrip())
            process.wait(timeout)
            reader.join()
            out, err = stdout[0], "".join(lines)
        else:
            out, err = process.communicate(text, timeout)
    except subprocess.TimeoutExpired:
        _end(process, signal.SIGKILL)
        process.communicate()
        raise Failure(f"`{shlex.join(arguments[:4])} …` gave no answer within {timeout:.0f} s.", remedy) from None
    except BaseException:
        _end(process)
        process.wait()
        raise
    finally:
        _running.discard(process)
    if _stopping.is_set():
        raise KeyboardInterrupt
    if check and process.returncode:
        last = "\n    ".join(CHATTER.sub("", err.strip() or out.strip()).splitlines()[-8:])
        raise Failure(f"`{shlex.join(arguments[:6])}` failed with status {process.returncode}:\n    {last}", remedy)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def until(question: Callable, seconds: float):
    """Ask until the answer is true, and return it; None if it is not within some seconds.

    For what tells nobody when it is ready: a daemon or a server that is starting. What can be watched is watched.
    """
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        if time.monotonic() > deadline:
            return None
        time.sleep(0.2)
    return answer


def stop_programs() -> None:
    """End every program that `run` has under way, and let none start; for an interrupted script."""
    _stopping.set()
    for process in list(_running):
        _end(process)


def _end(process: subprocess.Popen, how: signal.Signals = signal.SIGTERM) -> None:
    """Signal a program and all it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, how)


def resume_programs() -> None:
    """Let `run` start programs again, so that an interrupted script can clean up."""
    _stopping.clear()


# ── Steps ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Step:
    """One thing to be done.

    `action` is given a function to say what it is doing (`say(text, done=0.4)`, done from 0 to 1 where known), and
    returns what was done in a few words, such as "in the cache". It starts when the steps named in `after` are done.
    """

    name: str
    action: Callable[[Callable], str]
    after: tuple = ()


def run_steps(steps: list[Step]) -> None:
    """Run steps side by side, as far as they do not wait for one another, and show what each does and how long it took.

    Raises:
        Failure: the first one that a step raised; what had begun beside it is ended first.
    """
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    order = graphlib.TopologicalSorter({step.name: step.after for step in steps})
    order.prepare()
    by_name = {step.name: step for step in steps}
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description:<16}"),
        BarColumn(20),
        TimeElapsedColumn(),
        TextColumn("{task.fields[doing]}"),
    )
    with Progress(*columns, transient=True) as progress, ThreadPoolExecutor(len(steps)) as pool:
        console = progress.console
        running: dict = {}

        def start(step: Step) -> None:
            task = progress.add_task(step.name, total=None, doing="")
            if not console.is_terminal:
                console.print(f"  … {step.name}", highlight=False, soft_wrap=True)

            def say(text: str, done: float | None = None) -> None:
                progress.update(task, doing=text, **({} if done is None else {"completed": done, "total": 1}))

            running[pool.submit(step.action, say)] = step, task, time.monotonic()

        try:
            while order.is_active():
                for name in order.get_ready():
                    start(by_name[name])
                finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in finished:
                    step, task, began = running.pop(future)
                    outcome = future.result()
                    progress.remove_task(task)
                    console.print(
                        f"  ✓ {step.name}: {outcome} ({time.monotonic() - began:.1f} s)",
                        highlight=False,
                        soft_wrap=True,
                    )
                    order.done(step.name)
        except BaseException:
            stop_programs()
            wait(running)
            resume_programs()
            raise


@contextlib.contextmanager
def only_one(path: Path, what: str, shared: bool = False) -> Iterator[None]:
    """Hold the lock file at path while the block runs; wait for whoever holds it, and say who that is.

    Args:
        path: the lock file.
        what: is worked on; for those who wait.
        shared: let others in who hold it shared, too, but nobody who wants it alone.
    """
    lock = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, lock | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            print(f"Process {file.read().strip() or 'unknown'} is at work on {what}; waiting for it to finish …")
            fcntl.flock(file, lock)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
