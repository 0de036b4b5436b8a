"""The model: trained elsewhere (training/), served here."""
