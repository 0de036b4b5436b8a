"""The gateway's control plane: makes Envoy serve the contract."""
