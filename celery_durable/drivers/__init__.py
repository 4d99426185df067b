"""How a step waits: in its thread, or on the event loop; and what may interrupt its action."""
