"""Judges the risk of payments. Moves no money."""
