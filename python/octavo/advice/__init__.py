"""What to call for a model on a CPU, and what many settings give."""
