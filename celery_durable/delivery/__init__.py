"""Messages, results and outcomes as data, and what the result backend, monitors and the task itself are told."""
