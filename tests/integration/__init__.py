"""The ring of tests against a real Redis, without worker processes."""
