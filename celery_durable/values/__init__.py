"""A value or an error as text, and back: equal and of its type, or refused by name."""
