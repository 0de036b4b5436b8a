"""The user service: accounts, credentials, sessions, signing keys and vendors' sites."""
