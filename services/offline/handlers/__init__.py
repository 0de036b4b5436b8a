"""The RPCs of offline.v1."""
