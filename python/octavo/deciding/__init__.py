"""Which layers are quantized, and to how many bits."""
