"""A script of rights for three roles: who owns the schema, who indexes, who reads."""

from __future__ import annotations

from voxtier.errors import ConfigError
from voxtier.postgres import identifier

__all__ = ["grant_script"]

_TEMPLATE = """\
-- Rights of voxtier's roles. The roles must exist; run this as the owner of the database, and again after an
-- upgrade of the schema. {owner} runs the migrations (any command of voxtier does, on an empty database):
-- run one as {owner} between the two parts when the schema is not there yet.

GRANT CREATE, CONNECT, TEMPORARY ON DATABASE {database} TO {owner};
GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {builder};
GRANT CONNECT ON DATABASE {database} TO {reader};

GRANT USAGE ON SCHEMA voxtier TO {builder}, {reader};

-- Indexes files: every row, whatever its groups.
GRANT SELECT ON ALL TABLES IN SCHEMA voxtier TO {builder};
GRANT INSERT, UPDATE, DELETE ON voxtier.file, voxtier.file_stats, voxtier.claim, voxtier.claimed_frame
    TO {builder};
GRANT INSERT ON voxtier.source, voxtier.metric TO {builder};
DROP POLICY IF EXISTS {builder_policy} ON voxtier.file;
CREATE POLICY {builder_policy} ON voxtier.file TO {builder} USING (true) WITH CHECK (true);
DROP POLICY IF EXISTS {builder_policy} ON voxtier.claim;
CREATE POLICY {builder_policy} ON voxtier.claim TO {builder} USING (true) WITH CHECK (true);

-- Reads the rows of its groups, and counts what it loads.
GRANT SELECT ON voxtier.schema_version, voxtier.source, voxtier.file, voxtier.file_stats, voxtier.claim,
    voxtier.claimed_frame, voxtier.dicom_frames, voxtier.user_groups TO {reader};
GRANT INSERT, UPDATE ON voxtier.file_stats TO {reader};
GRANT INSERT ON voxtier.metric TO {reader};
GRANT SELECT ON voxtier.metric TO {reader};
"""


def grant_script(owner: str, builder: str, reader: str, *, database: str) -> str:
    """Return SQL that gives three roles what they need and nothing else.

    Parameters
    ----------
    owner : str
        Runs migrations, sets rules of access.
    builder : str
        Indexes files.
    reader : str
        Reads rows and counts loads; row security binds it.
    database : str
        Name of the database.

    Raises
    ------
    ConfigError
        A name that PostgreSQL cannot hold.
    """
    names = {"owner": owner, "builder": builder, "reader": reader, "database": database}
    for what, name in names.items():
        # Roles of Databricks are mail addresses and UUIDs: quoted, so any text will do.
        if not 0 < len(name.encode()) <= 63 or not name.isprintable():
            raise ConfigError(f"{what}={name[:70]!r}: a name has 1 to 63 bytes of printable text")
    quoted = {what: identifier(name) for what, name in names.items()}
    return _TEMPLATE.format(**quoted, builder_policy=identifier("builder_sees_all"))
