"""The desk where people decide what the platform will not decide alone."""
