"""`python -m services.fraud`."""

from services.fraud.server import main

main()
