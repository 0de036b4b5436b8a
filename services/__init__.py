"""Tallystick's services and the few nouns that two of them need."""
