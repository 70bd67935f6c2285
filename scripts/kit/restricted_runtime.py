#!/usr/bin/env python3
"""An OCI runtime for hosts whose root lacks a capability: it trims what the engine asks for, then becomes runc.

Docker before version 23 asks for every capability when it is told `--privileged`, and runc refuses to give what
the host itself does not hold. This program takes the missing capabilities, the negative OOM scores and the too high
resource limits (the last two need CAP_SYS_RESOURCE) out of the bundle's config.json (create, run) or of the
process file (exec). Only a daemon that the workshop itself starts is told to use it.

Runtime specification: the OCI image project's "runtime-spec", config.md, sections Process and Linux process.
"""

import json
import os
import re
import resource
import sys


def held(status: str) -> int:
    """The capability bounding set in the text of /proc/self/status, as a bit mask."""
    return int(re.search(r"^CapBnd:\s*([0-9a-f]+)$", status, re.MULTILINE)[1], 16)


# Bit numbers of the capabilities that a restricted host is known to withhold (linux/capability.h).
BITS = {
    "CAP_SYS_MODULE": 16,
    "CAP_SYS_RAWIO": 17,
    "CAP_SYS_BOOT": 22,
    "CAP_SYS_RESOURCE": 24,
    "CAP_SYS_TIME": 25,
    "CAP_AUDIT_CONTROL": 30,
    "CAP_MAC_OVERRIDE": 32,
    "CAP_MAC_ADMIN": 33,
    "CAP_SYSLOG": 34,
    "CAP_WAKE_ALARM": 35,
    "CAP_BLOCK_SUSPEND": 36,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
    "CAP_CHECKPOINT_RESTORE": 40,
}


def trim(process: dict, mask: int) -> dict:
    """Reduce an OCI process object, in place, to what a host with the capability mask can give; returns it."""
    missing = {name for name, bit in BITS.items() if not mask >> bit & 1}
    for kind, names in (process.get("capabilities") or {}).items():
        process["capabilities"][kind] = [name for name in names if name not in missing]
    if "CAP_SYS_RESOURCE" in missing:
        if process.get("oomScoreAdj", 0) < 0:
            process["oomScoreAdj"] = 0
        for limit in process.get("rlimits") or []:
            hard = resource.getrlimit(getattr(resource, limit["type"]))[1]
            if hard != resource.RLIM_INFINITY:
                limit["hard"] = min(limit["hard"], hard)
                limit["soft"] = min(limit["soft"], hard)
    return process


def rewrite(path: str, mask: int, find=lambda document: document) -> None:
    """Trim the process object that `find` picks out of the JSON file at path."""
    with open(path) as file:
        document = json.load(file)
    trim(find(document), mask)
    with open(path, "w") as file:
        json.dump(document, file)


def option(arguments: list, *names: str) -> str | None:
    """The value of the first of the named command-line options, given as `--name value` or `--name=value`."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            return value if equals else arguments[position + 1]
    return None


def main(arguments: list) -> None:
    """Trim the file that this call of the runtime is about, then run the real runtime with the same arguments."""
    with open("/proc/self/status") as file:
        mask = held(file.read())
    if "create" in arguments or "run" in arguments:
        bundle = option(arguments, "--bundle", "-b") or "."
        rewrite(os.path.join(bundle, "config.json"), mask, lambda document: document["process"])
    elif "exec" in arguments and (process_file := option(arguments, "--process", "-p")):
        rewrite(process_file, mask)
    os.execvp("runc", ["runc", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
