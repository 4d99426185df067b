"""What an operator sees of runs: frozen records, read from the journals by way of the index."""
