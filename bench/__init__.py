"""The benchmark: load, references, books."""
