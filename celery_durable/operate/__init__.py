"""What people see of runs, and what they ask of them. Records are read from the journals by way of the index."""
