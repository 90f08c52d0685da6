"""``voxtier tensors init``: a starting configuration."""

from __future__ import annotations

import click


@click.command("init")
def init_command() -> None:
    """Print a starting configuration, in which every key is explained.

    \b
    voxtier tensors init > config.yaml
    """
    from voxtier.tensors.identity.starter import STARTER

    click.echo(STARTER, nl=False)
