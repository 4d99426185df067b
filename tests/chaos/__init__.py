"""Random durable programs, run by real workers while everything around them breaks, and what must hold all the same.

    programs    what a task is to do: random, from a seed, as plain data
    oracle      what must come of a program, worked out without Celery
    app         the Celery app that plays programs, and leaves a line in `effects` for all that it does and sees
    stage       the servers and workers of one round
    faults      what goes wrong, at random, from a seed
    history     every change of every journal, in order, as Redis itself wrote it down
    evidence    all that is known of one run afterwards
    invariants  what must hold for it
    rounds      one round: programs, faults, the wait for the end, the verdict

`make chaos SEED=... MINUTES=...` plays rounds as long as one likes; a round is replayed by its seed. The programs and
the order of the faults are the same then; when each strikes is for the machine to say.
"""
