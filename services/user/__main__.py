"""`python -m services.user`."""

from services.user.server import main

main()
