"""`python -m tests.chaos`: rounds of chaos until the time is over; the first violation ends it, with its seed."""

import argparse
import random
import sys
import time

from tests.chaos.rounds import Report, Round

PROGRAMS_PER_ROUND = 80
SECONDS_PER_ROUND = 90


def main() -> int:
    options = _options()
    total, began, seed = Report(), time.monotonic(), options.seed
    print(f"chaos from seed {seed} on")
    while True:
        round_ = Round(seed, options.programs, SECONDS_PER_ROUND)
        print(f"seed {seed}: {round_.terms}", flush=True)
        report = round_.play()
        total.add(report)
        minutes = (time.monotonic() - began) / 60
        print(
            f"  {minutes:5.1f} min: {total.runs} programs, {total.faults.total()} faults, "
            f"{len(total.violations)} violations",
            flush=True,
        )
        if report.violations:
            _complain(seed, options.programs, report)
            if not options.go_on:
                break
        if minutes >= options.minutes:
            break
        seed += 1
    print(total)
    return 1 if total.violations else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the first round; default: random")
    parser.add_argument("--minutes", type=float, default=10, help="no round begins after that; 0: one round")
    parser.add_argument("--programs", type=int, default=PROGRAMS_PER_ROUND, help="per round")
    parser.add_argument("--go-on", action="store_true", help="also after a violation")
    return parser.parse_args()


def _complain(seed: int, programs: int, report: Report) -> None:
    for violation in report.violations:
        print(f"  !! {str(violation)[:500]}")
    print(f"  seed {seed} failed, see {report.dump}")
    print(f"  again: make chaos SEED={seed} MINUTES=0 PROGRAMS={programs}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
