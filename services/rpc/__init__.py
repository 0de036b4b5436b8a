"""How services are called: the server's edge, identity, access rules, errors, channels."""
