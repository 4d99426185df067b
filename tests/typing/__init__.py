"""The public API as type checkers see it: checked, never run."""
