"""Quantized models and trainees as safetensors files."""
