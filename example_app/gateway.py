"""The world outside the shop as one HTTP server: a warehouse, a card processor and a carrier.

    python -m example_app.gateway --port 8765 --delay 0.2

    POST   /charges             book for the order in the body, once per Idempotency-Key; ?delay=2 is slow
    DELETE /charges/<order id>  undo what is booked for that order
    GET    /charges             {"<order id>": {"booked": 1, "undone": 0, "requests": 2, "in_flight": 0}}

and the same for /reservations and /shipments. It makes trouble on purpose for orders whose id says so:
"flaky" (503 to the first two requests to charge), "declined" (402 to the charge), "unshippable" (422 to the
shipment). Like a real one it finishes what it has begun even if the caller has died meanwhile. It forgets
everything when it stops.
"""

import argparse
import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, ValidationError

SUPPLIERS = ("reservations", "charges", "shipments")
COUNTS = ("booked", "undone", "requests", "in_flight")
FLAKY_REQUESTS = 2

Report = dict[str, dict[str, int]]


class RefusedError(Exception):
    """An answer that is not a booking: the HTTP status, then the reason."""


class Subject(BaseModel):
    """All that a supplier wants to know of an order."""

    id: str


class Entry(BaseModel):
    """What a supplier knows of one idempotency key."""

    id: str
    order: str
    requests: int = 0
    in_flight: int = 0
    booked: bool = False
    undone: bool = False


class Ledger:
    """The book of one supplier."""

    def __init__(self, supplier: str) -> None:
        self._supplier = supplier
        self._entries: dict[str, Entry] = {}  # by idempotency key
        self._lock = threading.Lock()

    def book(self, key: str, order: str, seconds: float) -> Entry:
        """Book once for *key*, however often this is asked; work *seconds* on each request."""
        with self._lock:
            new = Entry(id=f"{self._supplier[:-1]}-{len(self._entries) + 1}", order=order)
            entry = self._entries.setdefault(key, new)
            entry.requests += 1
            entry.in_flight += 1
        try:
            time.sleep(seconds)
            self._make_trouble(entry)
            entry.booked = True
            return entry
        finally:
            with self._lock:
                entry.in_flight -= 1

    def undo(self, order: str) -> int:
        """Undo what is booked for *order*, and say how much that was."""
        with self._lock:
            booked = [entry for entry in self._entries.values() if entry.order == order and entry.booked]
        for entry in booked:
            entry.undone = True
        return len(booked)

    def report(self) -> Report:
        """What happened, by order."""
        report: Report = {}
        with self._lock:
            for entry in self._entries.values():
                counts = report.setdefault(entry.order, dict.fromkeys(COUNTS, 0))
                for count in COUNTS:
                    counts[count] += getattr(entry, count)
        return report

    def _make_trouble(self, entry: Entry) -> None:
        if self._supplier == "charges" and "flaky" in entry.order and entry.requests <= FLAKY_REQUESTS:
            raise RefusedError(503, "card processor overloaded")
        if self._supplier == "charges" and "declined" in entry.order:
            raise RefusedError(402, "card declined")
        if self._supplier == "shipments" and "unshippable" in entry.order:
            raise RefusedError(422, "no carrier goes there")


class Gateway(ThreadingHTTPServer):
    """Listens at *address*; a booking takes *delay* seconds on average."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], delay: float) -> None:
        super().__init__(address, Conversation)
        self.delay = delay
        self.ledgers = {supplier: Ledger(supplier) for supplier in SUPPLIERS}


class Conversation(BaseHTTPRequestHandler):
    """One request and its answer."""

    def do_GET(self) -> None:
        """Report."""
        if self.path == "/health":
            self._answer(200, {"status": "ok"})
        elif ledger := self._gateway.ledgers.get(self.path.strip("/")):
            self._answer(200, ledger.report())
        else:
            self._answer(404, {"error": f"nothing at {self.path}"})

    def do_POST(self) -> None:
        """Book."""
        url = urlsplit(self.path)
        key = self.headers["Idempotency-Key"]
        if not (ledger := self._gateway.ledgers.get(url.path.strip("/"))):
            self._answer(404, {"error": f"nothing to book at {url.path}"})
        elif not key:
            self._answer(400, {"error": "the header Idempotency-Key is missing"})
        else:
            try:
                order = Subject.model_validate_json(self._body()).id
                delay = float(parse_qs(url.query).get("delay", [self._gateway.delay])[0])
                entry = ledger.book(key, order, delay * random.uniform(0.5, 1.5))  # noqa: S311 - a pause
                self._answer(200, entry.model_dump(include={"id", "order"}))
            except ValidationError as error:
                self._answer(400, {"error": str(error)})
            except RefusedError as refused:
                status, reason = refused.args
                self._answer(status, {"error": reason})

    def do_DELETE(self) -> None:
        """Undo."""
        self._body()
        supplier, _, order = self.path.strip("/").partition("/")
        if ledger := self._gateway.ledgers.get(supplier):
            self._answer(200, {"undone": ledger.undo(order)})
        else:
            self._answer(404, {"error": f"nothing to undo at {self.path}"})

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log what changes something; health checks and reports would drown it."""
        if self.command != "GET":
            super().log_request(code, size)

    @property
    def _gateway(self) -> Gateway:
        return cast("Gateway", self.server)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"] or 0))

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            self.log_message("the caller of %s is gone; what is done stays done", self.path)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m example_app.gateway", description="The shop's suppliers.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--delay", type=float, default=0.2, help="seconds that a booking takes on average")
    options = parser.parse_args()
    with Gateway((options.host, options.port), options.delay) as gateway:
        print(f"the suppliers answer at http://{options.host}:{options.port}", flush=True)
        try:
            gateway.serve_forever()
        except KeyboardInterrupt:
            print("closed")


if __name__ == "__main__":
    main()
