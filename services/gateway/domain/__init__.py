"""From the contract's rules to what Envoy is told: values in, values out."""
