"""The payment service: the ledger, and everything that moves money."""
