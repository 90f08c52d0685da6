"""Missing tensors are made: plan, download, workers, run."""
