"""A message and a result as data: what is sent, what was sent, and what of it has arrived."""
