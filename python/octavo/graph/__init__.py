"""The captured graph of a model: which calls it makes, of what kind, in which layout."""
