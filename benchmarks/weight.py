"""The peak memory of one replay, in a fresh process: `python -m benchmarks.weight URL TASK_ID ENTRIES rss|tracemalloc`.

`rss` is the growth of the resident memory: its peak in the replay, less what the process had before. `tracemalloc` is
the peak of what Python's allocators gave out meanwhile.
"""

import gc
import json
import resource
import sys
import tracemalloc
from pathlib import Path

import psutil

from benchmarks.charge import kilobyte
from benchmarks.stand import Stand
from celery_durable import DurableContext

_CLEAR_PEAK = Path("/proc/self/clear_refs")


def main() -> None:
    """Replay, and print the peak in bytes."""
    url, task_id, entries, way = sys.argv[1:]
    stand = Stand(url)

    def body(ctx: DurableContext) -> None:
        for number in range(int(entries)):
            ctx.run("kilobyte", kilobyte, number)

    stand.forget(stand.run(lambda ctx: ctx.run("kilobyte", kilobyte, 0)))  # connections and caches
    gc.collect()
    if way == "tracemalloc":
        tracemalloc.start()
        stand.run(body, task_id, again=True)
        peak = tracemalloc.get_traced_memory()[1]
    else:
        before = _start_of_peak()
        stand.run(body, task_id, again=True)
        peak = _peak() - before
    sys.stdout.write(json.dumps({"peak": peak}))


def _start_of_peak() -> int:
    """The memory that the process has now; where the system can, the peak is counted from here on."""
    try:
        _CLEAR_PEAK.write_text("5")
    except OSError:
        return _peak()
    return int(psutil.Process().memory_info().rss)


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    main()
