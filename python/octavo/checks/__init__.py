"""What is refused before any work is done, of models and of arguments."""
