"""One call of a task, and what is known of it: its mode, its arguments, its session with the run, and its end."""
