"""`tallystick demo`: a stack, driven as real clients drive it, every expectation checked."""
