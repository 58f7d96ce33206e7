"""The command line."""

from deconfound.cli.dispatch import main as main
