"""RPCs of the fraud service."""
