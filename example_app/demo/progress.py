"""A progress bar of plain text: redrawn in place on a terminal, a line per change elsewhere."""

import sys
import time

WIDTH = 30


class Progress:
    """How many of *total* are done, and what goes on meanwhile."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._began = time.monotonic()
        self._in_place = sys.stdout.isatty()
        self._shown = ""

    def show(self, done: int, doing: str) -> None:
        """Bring the bar up to date."""
        filled = WIDTH * done // self._total
        bar = f"[{'#' * filled}{'.' * (WIDTH - filled)}] {done:>2} of {self._total}  {doing}"
        if self._in_place:
            self._print(f"\r{self._clock()}  {bar}\033[K", end="")
        elif bar != self._shown:
            self._print(f"{self._clock()}  {bar}")
        self._shown = bar

    def say(self, line: str) -> None:
        """Print a line that stays, above the bar."""
        self._print(f"\r{self._clock()}  {line}\033[K" if self._in_place else f"{self._clock()}  {line}")

    def close(self) -> None:
        """Leave the line of the bar."""
        if self._in_place and self._shown:
            self._print("")

    def _clock(self) -> str:
        return f"{time.monotonic() - self._began:5.1f} s"

    def _print(self, text: str, end: str = "\n") -> None:
        print(text, end=end, flush=True)
