"""The terminal as a full-screen program: `tallystick pos app`."""
