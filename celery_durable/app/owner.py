"""Who has a run: a process, as the journal names it."""

from __future__ import annotations

import hashlib
import socket
from functools import cache

from billiard import current_process


@cache
def owner_name(pid: int) -> str:
    """This process, or one of its pool, as the journal names it.

    Containers may have equal host names, and equal pids: so it names their worker, too. All processes of one share a
    random key, however they were started, which is not to be shown.
    """
    worker = hashlib.sha256(current_process().authkey).hexdigest()[:8]
    return f"{socket.gethostname()}:{worker}:{pid}"
