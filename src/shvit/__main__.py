"""Run the command line with `python -m shvit`."""

from .cli.main import main

main()
