"""Trainees: models that learn with fake-quantized weights and values, and are frozen then."""
