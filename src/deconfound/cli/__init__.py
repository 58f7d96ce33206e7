"""The command line."""

from deconfound.cli.verbs import main as main
