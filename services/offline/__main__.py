"""`python -m services.offline`."""

from services.offline.server import main

main()
