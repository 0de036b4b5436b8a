"""`python -m services.admin`."""

from services.admin.server import main

main()
