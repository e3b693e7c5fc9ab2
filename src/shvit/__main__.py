"""`python -m shvit` is `shvit`."""

from .cli import main

main()
