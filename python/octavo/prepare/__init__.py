"""What happens to the float model before it is rounded."""
