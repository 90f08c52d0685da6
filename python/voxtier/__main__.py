"""``python -m voxtier`` is the command line."""

from voxtier.cli import main

main()
