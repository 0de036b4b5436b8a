"""The `tallystick` command: the whole stack on one machine, and operators' tools for any stack."""
