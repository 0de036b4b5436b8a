"""The rules of accounts, sessions and signing keys: values in, values out."""
