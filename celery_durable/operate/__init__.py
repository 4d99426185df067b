"""What an operator sees of runs: records, read from the journals by way of the index."""
