"""What is said when somebody has done something with a run, or was refused. The shell and Flower's API say the same."""

from __future__ import annotations

from typing import Any

DONE = {
    "retry": "retried", "restart": "restarted", "cancel": "told to end", "wake": "woken", "purge": "purged",
    "import": "imported",
}  # fmt: skip
"""What can be done with a run → how that is said when it is done."""


def done(what: str, task_id: str, answer: Any) -> dict[str, Any]:
    """The document of something that was done; *answer* is what the method of :class:`Runs` has returned."""
    facts: dict[str, Any] = {"id": task_id, "what": what, "done": True, "said": DONE[what]}
    if what == "retry":
        return facts | {"said": f"{DONE[what]}: {answer}"}
    if what == "restart":
        return facts | {"said": f"{DONE[what]} as {answer}", "new_id": answer}
    return facts


def refused(what: str, task_id: str | None, why: str) -> dict[str, Any]:
    """The document of something that was not done; None: nobody knows with which run."""
    return {"id": task_id, "what": what, "done": False, "said": why}
