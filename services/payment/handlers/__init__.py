"""RPCs: request to command to reply."""
