"""What commands say of a search index in each state that it may be in: they ask the database for it once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from frames.gateway.search.test_search import files as files  # a fixture
from frames.gateway.search.test_search_index import fill
from voxtier.cli import doctor
from voxtier.cli.frames.search import fill_search
from voxtier.errors import ConfigError
from voxtier.frames.store.search_index import Making, SearchIndex
from voxtier.frames.store.store import FrameStore

STATES = {
    # What is done to it; verdict and words of doctor; words of a run, none where it says nothing.
    Making.NONE: ("DROP SCHEMA voxtier_search CASCADE", "ok", "no search index", None),
    Making.CURRENT: ("SELECT", "ok", "studies, complete", "0 headers read"),
    Making.OLDER: (
        "COMMENT ON SCHEMA voxtier_search IS NULL",
        "note",
        "which makes it anew",
        "makes it anew",
    ),
    Making.NEWER: (
        "COMMENT ON SCHEMA voxtier_search IS 'version 99'",
        "note",
        "upgrade voxtier",
        "upgrade voxtier",
    ),
    Making.DETACHED: (
        "DROP TRIGGER search_insert ON voxtier.file",
        "note",
        "each source",
        "by a run of its own",
    ),
}


@pytest.fixture
def counted(
    store: FrameStore, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[], Any]], tuple[Any, int]]:
    """Return what a call returns, and how often it asked what made the search index."""
    asked: list[str] = []
    query = FrameStore.query

    def note(self: FrameStore, statement: str, parameters: Any) -> Any:
        asked.append(statement)
        return query(self, statement, parameters)

    def count(call: Callable[[], Any]) -> tuple[Any, int]:
        asked.clear()
        return call(), sum("obj_description" in each for each in asked)

    monkeypatch.setattr(FrameStore, "query", note)
    return count


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("state", STATES)
def test_commands_say_what_there_is(
    store: FrameStore,
    dsn: str,
    counted: Callable[[Callable[[], Any]], tuple[Any, int]],
    capsys: pytest.CaptureFixture[str],
    state: Making,
) -> None:
    made = fill(store)
    change, verdict, words, told = STATES[state]
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute(change.encode())
    assert made.making() is state
    findings, asked = counted(lambda: list(doctor._search_index(store)))
    assert (findings[0].verdict, asked) == (verdict, 1)
    assert words in findings[0].text
    assert any("names patients" in each.text for each in findings) == (state is not Making.NONE)
    capsys.readouterr()
    _, asked = counted(lambda: fill_search(store, "default", 2))
    assert asked == (2 if state is Making.CURRENT else 1)  # once more before it is said to be complete
    said = capsys.readouterr().err
    assert told in said if told else not said
    if state is Making.NEWER:
        with pytest.raises(ConfigError, match=r"has version 99, .* upgrade voxtier"):
            made.switch_on("default")
    else:
        made.switch_on("default")
        assert SearchIndex(store).making() is Making.CURRENT
