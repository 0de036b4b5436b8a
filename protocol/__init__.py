"""The offline protocol that issuer and terminals speak: codes, vouchers, journals, bundles. Pure; no I/O, no clock."""
