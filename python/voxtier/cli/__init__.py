"""The command line: ``voxtier COMMAND``. A folder a room, loaded when one of its commands runs."""

from voxtier.cli.commands import main

__all__ = ["main"]
