"""`python -m services.payment`."""

from services.payment.server import main

main()
