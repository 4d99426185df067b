"""The name by which the journal knows a process that has a run."""

from __future__ import annotations

import hashlib
import socket
from functools import cache

from billiard import current_process


@cache
def owner_name(pid: int) -> str:
    """The name of the process *pid*, which is this one or one of its pool: ``<host>:<worker>:<pid>``.

    Two containers may have the same host name and the same pids. So the name contains the worker, too. All processes of
    a worker share a random key. The key is secret, so the name has a hash of it.
    """
    worker = hashlib.sha256(current_process().authkey).hexdigest()[:8]
    return f"{socket.gethostname()}:{worker}:{pid}"
