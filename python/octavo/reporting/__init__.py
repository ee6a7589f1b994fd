"""What was done to a model, as records, text and tables."""
