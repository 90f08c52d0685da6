"""Everything that the package asks of a database, with answers that are known: one process among several.

``python whole_surface.py DSN SEED ROUNDS FOLDER`` exits with 0 if every answer was right. Each process
has a source of its own, whose answers it knows, and writes to one that all share.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from frames.store.rows.index_rows import ct
from voxtier import _core
from voxtier.errors import FormatError
from voxtier.frames import FrameCache, FrameReader, FrameStore, LakebaseUtils, TableResult, read_table
from voxtier.frames.databricks.lakebase import import_dicom_frames
from voxtier.frames.indexing.run import FileIndexer
from voxtier.frames.memory.ranking import preload_rows, ranked_files
from voxtier.postgres.database import Database

FILES = 12


class Surface:
    """The files of one process, and questions about them.

    Parameters
    ----------
    dsn : str
        The database.
    seed : int
        Number of the process.
    folder : Path
        Its own.
    """

    def __init__(self, dsn: str, seed: int, folder: Path) -> None:
        self.seed = seed
        self.store = FrameStore(Database(dsn, max_size=4))
        self.lakebase = LakebaseUtils(
            dsn=dsn, uc_table_name=f"c.s.t{seed}", min_connections=0, max_connections=2
        )
        self.source = f"c.s.t{seed}"
        self.series = f"1.2.{seed}"
        self.paths = [str(folder / f"{number:02}.dcm") for number in range(FILES)]
        self.uids = [f"1.2.{seed}.{number + 1}" for number in range(FILES)]
        for number, path in enumerate(self.paths):
            frames = number % 3 + 1
            content = ct(number, uid=self.uids[number], series=self.series, frames=frames)
            Path(path).write_bytes(content)
        self.tables = [read_table(path, verify="all") for path in self.paths]
        self.keys = [_core.file_key(self.source, path) for path in self.paths]
        assert len(FileIndexer(self.store, source=self.source, threads=2).index_batch(self.paths)) == FILES

    def upsert(self) -> None:
        """Rows that all processes write: in an order of its own, so that they meet."""
        table = self.tables[0]
        numbers = random.sample(range(300), 100)
        written = self.store.upsert("shared", [TableResult(f"/{number}", table, None) for number in numbers])
        assert sum(written[:3]) == 100, written
        bad = TableResult("/bad", None, FormatError("not_dicom", 7, "not an image"))
        own = [TableResult(path, table, None) for path, table in zip(self.paths, self.tables, strict=True)]
        written = self.store.upsert(f"{self.source}.more", [*own, bad], force=True)
        assert written.inserted + written.updated == FILES + 1
        assert [each.path for each in self.store.refused_files(f"{self.source}.more")] == ["/bad"]
        assert self.store.delete("shared", ["/400"]) == 0

    def look_up(self) -> None:
        number = random.randrange(FILES)
        path, table, uid = self.paths[number], self.tables[number], self.uids[number]
        assert self.store.get(self.source, path) == table
        assert self.store.get(self.source, "/no") is None
        assert self.store.get_many(self.source, [path, "/no"]) == [table, None]
        states = self.store.file_states(self.source, [path, "/no"])
        assert states[0] is not None
        assert (states[0].size, states[0].frame_count, states[1]) == (table.size, len(table), None)
        assert [each.path for each in self.store.by_sop_instance(uid, self.source)] == [path]
        assert self.store.by_sop_instance(self.series) == []
        assert [each.path for each in self.store.by_series(self.series, self.source)] == self.paths
        assert self.store.by_series(uid) == []
        for with_series, rows in ((False, 1), (True, FILES)):
            answer = self.store.recall(self.source, path, with_series=with_series)
            assert answer is not None
            assert answer.found == table
            keys, _ = FrameCache(1 << 20).put_rows(answer.rows)
            assert len(keys) == rows

    def summarise(self) -> None:
        total = self.store.summary(self.source).total
        assert (total.files, total.frames) == (FILES, sum(map(len, self.tables)))
        assert {self.source, "shared"} <= {*self.store.sources(), "shared"}
        assert list(self.store.refused_files(self.source)) == []
        assert list(self.store.missing_files(self.source)) == []
        assert self.store.prune(self.source) == 0
        self.store.probe()

    def touch(self) -> None:
        now = datetime.now(UTC)
        gone = bytes(16)
        assert self.store.touch([*self.keys, gone], [1] * (FILES + 1), [now] * (FILES + 1)) == [gone]
        assert self.lakebase.touch_frame_ranges(self.paths[0]) == 1

    def rank(self) -> None:
        assert {each.path for each in ranked_files(self.store, self.source, 100)} == set(self.paths)
        cache = FrameCache(1 << 20)
        rows = b"".join(preload_rows(self.store, self.source, 100))
        assert cache.preload_rows(rows, 1 << 20) == (FILES, 0, 0)

    def serve(self) -> None:
        with FrameReader(self.store, self.source, publish=False, index_seconds=120.0) as reader:
            for number in random.sample(range(FILES), 4):
                size = 16 * len(self.tables[number])
                content = Path(self.paths[number]).read_bytes()[-size:]
                assert reader.frame(self.uids[number], 0) == content[:16]
            reader.preload.start()
            assert reader.preload.wait(120)
            assert reader.preload.progress()["state"] == "done", reader.preload.progress()
            reader.flush()
            assert reader.stats()["flush_errors"] == reader.stats()["store_errors"] == 0

    def call_lakebase(self) -> None:
        number = random.randrange(FILES)
        path = self.paths[number]
        ranges = self.lakebase.retrieve_all_frame_ranges(path)
        assert ranges is not None
        assert len(ranges) == len(self.tables[number])
        assert self.lakebase.retrieve_frame_range(path, 0, user_groups=["a"]) is not None
        assert len(self.lakebase.get_preload_priority_list(limit=5)) == 5
        instance = self.lakebase.retrieve_instance_path(None, None, self.uids[number])
        assert instance is not None
        assert instance["local_path"] == path
        assert len(self.lakebase.retrieve_instance_paths_by_series(None, self.series)) == FILES
        assert len(self.lakebase.retrieve_instance_paths_for_preload(limit=3)) == 3
        claimed = f"/claimed/{random.randrange(50)}"
        self.lakebase.insert_frame_range(claimed, 0, 10, 20, 5, allowed_groups=["a"])
        assert self.lakebase.retrieve_frame_range(claimed, 0, user_groups=["b"]) is None
        assert self.lakebase.retrieve_frame_range(claimed, 0, user_groups=["a"]) is not None
        self.lakebase.insert_metrics(self.source, {"n": number})
        assert len(self.lakebase.get_latest_metrics(self.source, limit=1)) == 1
        ruled = f"c.s.r{self.seed}_{threading.get_ident()}"
        self.lakebase.upsert_access_rule(ruled, "a", path_prefix="/x")
        assert len(self.lakebase.get_access_rules(ruled)) == 1
        assert self.lakebase.reset_allowed_groups(ruled) == 0
        assert self.lakebase.get_user_groups("nobody") == []

    def import_rows(self) -> None:
        view = f"frames_{self.seed}"
        self.lakebase.create_frames_view(table=view, uc_table_name=f"c.old{self.seed}.t")
        table = f"old{self.seed}.rows"
        self.lakebase.execute_query(
            f"CREATE TABLE IF NOT EXISTS {table} AS SELECT * FROM voxtier.dicom_frames"
            f" WHERE uc_table_name = '{self.source}' AND verified = 'all'"
        )
        *_, report = import_dicom_frames(self.lakebase, table, batch_size=5, threads=2)
        assert (report.files, report.verified, report.differing) == (FILES, FILES, 0)


def main(dsn: str, seed: int, rounds: int, folder: Path) -> None:
    """Ask everything in an order of its own, four questions at a time."""
    random.seed(seed)
    surface = Surface(dsn, seed, folder)
    questions: list[Callable[[], None]] = [
        surface.upsert,
        surface.look_up,
        surface.summarise,
        surface.touch,
        surface.rank,
        surface.serve,
        surface.call_lakebase,
    ]
    asked = questions * rounds
    random.shuffle(asked)
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(question) for question in asked]:
            done.result()
    surface.import_rows()
    surface.lakebase.close()
    surface.store.close()


if __name__ == "__main__":
    os.environ["VOXTIER_HOME"] = sys.argv[4]
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
