"""Makes the model that services/fraud ships. Needs `make setup-training`."""
