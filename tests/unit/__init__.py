"""Every module by itself, on the journal in memory: no Redis and no worker."""
