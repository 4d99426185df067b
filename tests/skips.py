"""What is told of the tests that did not run."""

from collections import Counter
from collections.abc import Collection


def counted(reasons: Collection[str]) -> str:
    """Say in one line how many tests were skipped, and how many for each reason."""
    counts = Counter(reason.removeprefix("Skipped: ") for reason in reasons)
    return f"{len(reasons)} skipped: " + "; ".join(f"{count} x {reason}" for reason, count in counts.most_common())
