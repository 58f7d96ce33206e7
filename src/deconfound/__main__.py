"""`python -m deconfound` is `deconfound`."""

from deconfound.cli import main

main()
