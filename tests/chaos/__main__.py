"""`python -m tests.chaos`: rounds of chaos until the time is over; the first violation ends it, with its seed."""

import argparse
import random
import sys
import time
from contextlib import suppress
from itertools import count

from tests.chaos.rounds import Report, Round
from tests.processes import end_as_by_ctrl_c

PROGRAMS_PER_ROUND = 80
SECONDS_PER_ROUND = 90


def main() -> int:
    options, total = _options(), Report()
    end_as_by_ctrl_c()
    end = time.monotonic() + 60 * options.minutes
    with suppress(KeyboardInterrupt):
        for seed in count(options.seed):
            report = _play(seed, options.programs)
            total.add(report)
            print(f"  so far: {total.summary()}", flush=True)
            if time.monotonic() >= end or (report.violations and not options.go_on):
                break
    print(total)
    return 1 if total.violations else 0


def _play(seed: int, programs: int) -> Report:
    round_ = Round(seed, programs, SECONDS_PER_ROUND)
    print(f"seed {seed}: {round_.terms}", flush=True)
    report = round_.play()
    for violation in report.violations:
        print(f"  !! {str(violation)[:500]}")
    if report.violations:
        print(f"  seed {seed} failed, see {report.dump}")
        print(f"  again: make chaos SEED={seed} MINUTES=0 PROGRAMS={programs}")
    return report


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the first round; default: random")
    parser.add_argument("--minutes", type=float, default=10, help="no round begins after that; 0: one round")
    parser.add_argument("--programs", type=int, default=PROGRAMS_PER_ROUND, help="per round")
    parser.add_argument("--go-on", action="store_true", help="also after a violation")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
