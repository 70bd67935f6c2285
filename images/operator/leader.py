"""Leader election: of several candidates the one leads whose name stands in a Lease.

The client library's own LeaseLock does not count the terms, and a store needs that number.
"""

import threading
import time
from datetime import UTC, datetime

from kubernetes.client import ApiException, CoordinationV1Api
from urllib3.exceptions import HTTPError

LOOK_SECONDS = 0.5  # how long a candidate waits before it looks at the Lease again


class Candidate:
    """One that wants to lead.

    Args:
        lease: the name of the Lease.
        namespace: where it is.
        identity: the candidate's name, which stands in the Lease while it leads.
    """

    def __init__(self, lease: str, namespace: str, identity: str):
        self._place, self._identity, self._api = (lease, namespace), identity, CoordinationV1Api()
        self._token, self._end = None, 0  # of our latest term, and when it ends, unless we renew it
        self._version, self._changed = None, 0  # of the Lease, and when we saw that version first

    def term(self) -> int | None:
        """The token of our term, higher than that of every term before; None if we don't lead."""
        return self._token if time.monotonic() < self._end else None  # by our own clock

    def terms(self):
        """Stand for election as long as the process runs; yield the token of each term of ours."""
        threading.Thread(target=self._campaign, daemon=True).start()
        while True:
            if token := self.term():
                yield token
            time.sleep(LOOK_SECONDS / 10)

    def renew(self) -> bool:
        """Look at the Lease once; renew it if it is ours, take it if it is free or has run out.

        Returns:
            Whether we lead now.
        """
        lease = self._api.read_namespaced_lease(*self._place, _request_timeout=5)
        spec, began = lease.spec, time.monotonic()
        if lease.metadata.resource_version != self._version:
            self._version, self._changed = lease.metadata.resource_version, began
        ours = (spec.holder_identity, spec.lease_transitions) == (self._identity, self._token)
        ran_out = began - self._changed > spec.lease_duration_seconds
        if spec.holder_identity and not ours and not ran_out:
            return False
        spec.renew_time = datetime.now(UTC)  # for people; no candidate trusts another's clock
        if not ours:
            spec.holder_identity, spec.acquire_time = self._identity, spec.renew_time
            spec.lease_transitions = (spec.lease_transitions or 0) + 1
        try:
            self._api.replace_namespaced_lease(*self._place, lease, _request_timeout=5)
        except ApiException as error:
            if error.status == 409:  # Conflict: it is not the version any more that we have read
                return False
            raise
        self._token, self._end = spec.lease_transitions, began + spec.lease_duration_seconds
        return True

    def _campaign(self):
        while True:
            try:
                self.renew()
            except (ApiException, HTTPError) as error:
                print("The Lease can't be had:", getattr(error, "reason", error), flush=True)
            time.sleep(LOOK_SECONDS)
