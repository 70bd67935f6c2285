"""The workshop's machinery: an engine, tools, images and a cluster, each made when it is missing.

The modules import in this order: `console` (talking to a person), `engine` (Docker), `tools` (Python packages,
kubectl, kind, the Gateway API, Go), `images` (what the cluster runs) and `cluster`. Until `tools.enter_environment`
has run, only Python's standard library may be imported.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What belongs to this clone, ignored by git: kubeconfigs, logs.
STATE = ROOT / ".workshop"

# What is slow to make, shared by every clone of this user.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "kubernetes-and-state"

# Everything made in the engine carries this label with the user's number; only that is ever deleted.
LABEL = "kubernetes-and-state.owner"
OWNER = str(os.getuid())
