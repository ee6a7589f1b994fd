"""Fake quantization in one call of an operator: a file for each form."""
