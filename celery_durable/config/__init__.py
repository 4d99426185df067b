"""Options and settings: checked when they are given, frozen after that."""
