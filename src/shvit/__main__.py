"""`python -m shvit` is `shvit`."""

from .cli.main import main

main()
