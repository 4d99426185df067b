"""What other packages keep to themselves and this library uses: each such name is looked up here, at import."""
