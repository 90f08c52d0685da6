"""Random requests by the hundred thousand: ``python -m frames.gateway.campaign`` (`make fuzz`)."""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from frames.gateway.serving import index
from frames.gateway.test_fuzz import check, request
from frames.gateway.wado.test_frames import write
from voxtier.frames import Gateway
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.embedded import EmbeddedServer


def main() -> None:
    """Ask a gateway of one instance, and end with an error at the first wrong answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="voxtier-fuzz-") as name:
        folder = Path(name)
        server = EmbeddedServer(folder / "server")
        server.attach()
        try:
            with FrameStore(server.conninfo()) as store:
                index(store, [write(folder, "a", "1.9")])
                with Gateway(store, port=0, workers=2, index_seconds=60) as gateway:
                    for number in range(given.requests):
                        check(gateway, request(rng), number)
                        if number % 10_000 == 9_999:
                            print(f"{number + 1:,} requests", flush=True)
        finally:
            server.detach()


if __name__ == "__main__":
    main()
