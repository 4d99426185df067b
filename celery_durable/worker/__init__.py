"""What a worker does besides its tasks: recovery, revocation, a control command, and checks when it starts."""
