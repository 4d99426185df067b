"""What people do with a run: a file for each verb."""
