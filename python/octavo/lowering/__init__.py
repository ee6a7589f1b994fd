"""From a plan to what runs: programs of regions, and quantized layers in the model."""
