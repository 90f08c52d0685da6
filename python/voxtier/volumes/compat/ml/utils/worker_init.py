"""What a DataLoader's worker does first: nothing, as volumes are opened anew in each process."""


def worker_init_fn(worker_id: int) -> None:
    """Accept the number of a worker; voxtier opens what it needs in each process."""
