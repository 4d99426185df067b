"""What a worker does besides its tasks: recovery, revocation, control commands, checks at its start."""
