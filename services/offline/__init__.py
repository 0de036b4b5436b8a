"""The offline service: codes and their keys, terminals' journals as received, their settlement."""
