"""What a weight or a value is stored as: schemes, grids, ranges, codes, and the noise they make."""
