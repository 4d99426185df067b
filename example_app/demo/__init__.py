"""The demonstration behind `python -m example_app.demo`; a shop of your own needs nothing of it."""
