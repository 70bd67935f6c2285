"""The meter of lessons 12 and 13: it writes rows, and tells which of those that were acknowledged a database lacks."""

from subprocess import PIPE, Popen, TimeoutExpired, run
from time import monotonic

from lab import Problem

# Wait until somebody answers, as a Service may just be changing its mind. Then a connection for each row, and the row's
# number for each OK; the first row that gets none is the last.
WRITE = """
for try in $(seq 10); do
  mariadb --host="$1" --user=votes --connect-timeout=2 --execute="DO 0" > /dev/null 2>&1 && break
  sleep 1
done
for row in $(seq "$2" "$3"); do
  mariadb --host="$1" --user=votes --connect-timeout=10 votes --execute="INSERT INTO ballots VALUES ($row)" || break
  echo "$row"
done
"""

PATIENCE = 120  # seconds that a row may wait for its acknowledgement
WAYS = {
    "free space": "Its volume is full. Make room on it (kubectl exec POD -- df /data); it goes on a minute later.",
    "semi-sync ACK": "No replica confirms what it writes. Have one follow it.",
    "": "If its primary is gone once more, promote a replica, and give it the label role=primary; then go on.",
}


def ask(pod: str, query: str, *options: str) -> str:
    """What a database answers that is asked from a Pod.

    Args:
        pod: where the program `mariadb` runs; unless options say otherwise, the database is there, too.
        query: what is asked.
        options: of the program `mariadb`.

    Raises:
        Problem: it refuses, or there is none; in its own words.
    """
    command = ["kubectl", "exec", pod, "--", "mariadb", "--skip-column-names", "votes", f"--execute={query}"]
    done = run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Problem(f"{pod}: {done.stderr.splitlines()[0]}")
    return done.stdout.strip()


class Meter:
    """Rows written from the Pod `client`, each with a number of its own.

    Attributes:
        host: whom to write to: a Service, or a Pod by its name in DNS.
        acknowledged: the numbers of all rows of which a database has said that it has them.
    """

    def __init__(self, host: str, first: int = 1):
        self.host, self.acknowledged = host, set()
        self._next, self._writers = first, []

    def begin(self, rows: int) -> None:
        """Start to write rows, and do not wait for their acknowledgements."""
        first, self._next = self._next, self._next + rows
        command = ["kubectl", "exec", "client", "--", "sh", "-c", WRITE, "sh", self.host, str(first)]
        self._writers.append(Popen([*command, str(self._next - 1)], stdout=PIPE, stderr=PIPE, text=True))

    def end(self) -> int:
        """Wait for the acknowledgements; return how many rows are acknowledged now, of all.

        Raises:
            Problem: a row was not acknowledged.
        """
        said, end = "", monotonic() + PATIENCE
        while self._writers:
            writer = self._writers.pop()
            try:
                printed, complaint = writer.communicate(timeout=max(end - monotonic(), 0))
            except TimeoutExpired:
                complaint = f"For {PATIENCE} s no answer; it is at: {self._state()}"
                writer.kill()
                printed, _ = writer.communicate()
            self.acknowledged |= set(map(int, printed.split()))
            said = complaint.strip() or said
        if said:
            way = next(way for words, way in WAYS.items() if words in said)
            raise Problem(f"{self.host} did not acknowledge a row. {said}\n{way}")
        return len(self.acknowledged)

    def write(self, rows: int = 20) -> int:
        """Write rows; return how many are acknowledged now, of all."""
        self.begin(rows)
        return self.end()

    def _state(self) -> str:
        """What the database is doing with the rows that are on their way, in its own words."""
        query = "SELECT DISTINCT state FROM information_schema.processlist WHERE info LIKE 'INSERT%'"
        try:
            found = ask("client", query, f"--host={self.host}", "--user=votes", "--connect-timeout=10")
        except Problem as problem:
            return str(problem)
        return found.replace("\n", ", ")

    def lost(self, pod: str) -> int:
        """How many acknowledged rows the database in a Pod does not have, when it has applied all that it knows of."""
        found = ask(pod, "SET SESSION wsrep_sync_wait = 1; SELECT * FROM ballots")
        return len(self.acknowledged - set(map(int, found.split())))
