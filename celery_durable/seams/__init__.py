"""The private names of other packages that this library uses. Each one is looked up here, at import."""
