"""``voxtier serve``: the gateway on the command line."""
