"""`tallystick fraud`: how good the checks are on labelled worlds."""
