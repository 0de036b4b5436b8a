"""A whole stack on this machine: `tallystick up`."""
