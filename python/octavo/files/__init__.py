"""Files: written whole or not at all, and read with the types that are declared."""
