"""Rules, claims, files, imports, resets and prunes in any order: a model keeps apart who gave what.

The index keeps one list of groups for a row. The model keeps what writers gave to a path, and asks the rules
about the instance of the row: as writers have other names for groups than rules, both must agree.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from frames.dicom.catalogue import TABLE, native
from voxtier.frames import LakebaseUtils, read_table
from voxtier.frames.databricks.lakebase import groups as group_methods
from voxtier.frames.dicom.table import TableResult
from voxtier.frames.store.groups import GroupStore, restrict

PATHS = ["/x/a.dcm", "/x/ab.dcm", "/xé y/a.dcm"]
PREFIXES = ["", "/x", "/x/a", "/x/ab.dcm", "/xé y/"]
BY_RULES, BY_WRITERS = ["g1", "g,2", "ö"], ["w1", "w 2"]
CONDITIONS = ["c0", "c1"]
UIDS = [f"2.25.1.{seed}" for seed in range(4)]
TABLES = [read_table(native(seed)) for seed in range(4)]
Groups = frozenset[str] | None


@dataclass
class Rule:
    condition: str | None
    found: set[str] = field(default_factory=set)
    in_force: bool = True


class Model:
    """An index, and what its rows should be."""

    def __init__(self, lakebase: LakebaseUtils, rnd: random.Random, patch: pytest.MonkeyPatch) -> None:
        self.lakebase, self.rnd, self.patch = lakebase, rnd, patch
        self.rules: dict[tuple[str, str], Rule] = {}
        self.given: dict[str, Groups] = dict.fromkeys(PATHS)
        self.files: dict[str, str] = {}
        self.claims: dict[str, str | None] = {}
        self.answers: dict[str, set[str]] = {}

    def by_rules(self, path: str, uid: str | None) -> Groups:
        fitting = [
            (key, rule) for key, rule in self.rules.items() if rule.in_force and path.startswith(key[0])
        ]
        longest = max((key[0] for key, _ in fitting), key=len, default="")
        which = [(key[1], rule) for key, rule in fitting if key[0] == longest]
        if not which:
            return None
        return frozenset(name for name, rule in which if rule.condition is None or uid in rule.found)

    def groups(self, path: str, uid: str | None) -> Groups:
        by_rules, given = self.by_rules(path, uid), self.given[path]
        return given if by_rules is None else by_rules | (given or frozenset())

    def rules_decide(self, prefix: str = "") -> None:
        for path in PATHS:
            if path.startswith(prefix) and self.by_rules(path, None) is not None:
                self.given[path] = None

    def set_rule(self) -> None:
        prefix, group = self.rnd.choice(PREFIXES), self.rnd.choice(BY_RULES)
        condition = self.rnd.choice([None, *CONDITIONS, *CONDITIONS])
        level = "full" if condition is None else "conditional"
        self.lakebase.upsert_access_rule(TABLE, group, level, condition, path_prefix=prefix)
        before = self.rules.get((prefix, group))
        found = before.found if before is not None and before.condition == condition else set()
        self.rules[prefix, group] = Rule(condition, found)
        self.rules_decide(prefix)

    def execute(self, query: str, parameters: object = None) -> list[tuple[str]]:
        """Answer as the warehouse does."""
        assert parameters is None
        return [(uid,) for uid in self.answers[query.split("WHERE (\n")[1].removesuffix("\n)")]]

    def synchronise(self) -> None:
        self.answers = {condition: set(self.rnd.sample(UIDS, 2)) for condition in CONDITIONS}
        self.lakebase.sync_uc_row_filters(TABLE, self)
        for rule in self.rules.values():
            found = set() if rule.condition is None else self.answers[rule.condition]
            rule.found, rule.in_force = found, True
        self.rules_decide()

    def replace_rules(self) -> None:
        groups = self.rnd.choice([None, None, self.rnd.sample(BY_RULES, 2)])
        self.patch.setattr(group_methods, "row_filter_groups", lambda *_: groups)
        self.lakebase.sync_uc_row_filters(TABLE)
        self.rules = {("", group): Rule(None) for group in groups or ()}
        self.rules_decide()

    def reset(self) -> None:
        self.lakebase.reset_allowed_groups(TABLE)
        for rule in self.rules.values():
            rule.in_force = False
        self.given = dict.fromkeys(PATHS)

    def index(self) -> None:
        for path in self.rnd.sample(PATHS, 2):
            seed = self.rnd.randrange(len(UIDS))
            self.lakebase.store.upsert(TABLE, [TableResult(path, TABLES[seed], None)], force=True)
            self.files[path] = UIDS[seed]

    def claim(self) -> None:
        path = self.rnd.choice(PATHS)
        groups = self.rnd.choice([None, [self.rnd.choice(BY_WRITERS)]])
        uid = self.rnd.choice([None, *UIDS])
        entry = {"local_path": path, "sop_instance_uid": uid}
        self.lakebase.insert_instance_paths_batch([entry], allowed_groups=groups)
        self.claims[path] = uid or self.claims.get(path)
        if groups is not None:
            self.given[path] = (self.given[path] or frozenset()) | set(groups)

    def import_groups(self) -> None:
        path = self.rnd.choice(PATHS)
        groups = self.rnd.sample(BY_WRITERS, self.rnd.randrange(3))
        restrict(self.lakebase.store, TABLE, {path: groups})
        if self.by_rules(path, None) is None:
            self.claims.setdefault(path, None)
            self.given[path] = frozenset(groups)

    def prune(self) -> None:
        path = self.rnd.choice(PATHS)
        self.lakebase.store.prune(TABLE, is_gone=lambda each: each == path, force=True)
        if self.files.pop(path, None) is not None:
            self.claims.pop(path, None)
            if self.given[path] is not None:
                self.claims[path] = None

    def check(self) -> None:
        for table, uids in (("file", self.files), ("claim", self.claims)):
            query = f"SELECT path, sop_instance_uid, allowed_groups FROM voxtier.{table}"
            found = {
                path: (uid, None if groups is None else frozenset(groups))
                for path, uid, groups in self.lakebase.rows(query, None)
            }
            assert found == {path: (uid, self.groups(path, uid)) for path, uid in uids.items()}
        asking = {self.rnd.choice([*BY_RULES, *BY_WRITERS, "a stranger"])}
        reader = GroupStore(self.lakebase.store, asking)
        for path, uid in self.files.items():
            groups = self.groups(path, uid)
            assert reader.may_read(TABLE, path, uid) == (groups is None or bool(groups & asking))


@pytest.mark.parametrize("seed", range(8))
def test_groups_are_those_of_the_rules_and_of_the_writers(
    lakebase: LakebaseUtils, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rnd = random.Random(seed)
    model = Model(lakebase, rnd, monkeypatch)
    often: list[Callable[[], None]] = [model.index, model.claim, model.claim, model.set_rule, model.prune]
    often += [*often, model.synchronise]
    steps = 4 * often + 2 * [model.import_groups, model.import_groups, model.replace_rules, model.reset]
    rnd.shuffle(steps)
    for step in 2 * steps:
        step()
        model.check()
