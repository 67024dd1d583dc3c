"""The manifest: the only file that says what belongs to a store."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from filterdb.errors import (
    CorruptShardError,
    FormatVersionError,
    IncompleteStoreError,
    StoreNotFoundError,
)
from filterdb.files import write_bytes_durably
from filterdb.store.layout import MANIFEST_FILE, STORE_FILE
from filterdb.store.plan import Plan
from filterdb.store.schema import FORMAT_NAME, FORMAT_VERSION, MANIFEST


@dataclass(frozen=True)
class ManifestRow:
    """One file of the store; the columns of the manifest table.

    Parameters
    ----------
    path
        Relative to the store, separated by "/".
    kind
        "filters" or "table".
    rows
        Rows of the table, filters of the shard, models of the plan.
    bytes, sha256
        Of the file.
    generation
        The commit that wrote it.
    """

    path: str
    kind: str
    rows: int
    bytes: int
    sha256: str
    generation: int

    @property
    def name(self) -> str:
        """Table name, "plan", or the shard's path."""
        if self.kind == "filters":
            return self.path
        return Path(self.path).stem


@dataclass(frozen=True)
class Manifest:
    """What a store consists of at one moment.

    Parameters
    ----------
    rows
        One per file, sorted by path.
    generation
        Number of commits so far; 0 is a store nothing was committed to.
    extractions
        How many of those commits came from an extraction.
    plan_sha256
        Hash of the committed plan; empty where there is none.
    settings_sha256
        Hash of ``store.json``.
    """

    rows: tuple[ManifestRow, ...] = ()
    generation: int = 0
    extractions: int = 0
    plan_sha256: str = ""
    settings_sha256: str = ""

    @property
    def seal(self) -> str:
        """Hash of everything above, kept in the file, since no other file vouches for it."""
        rows = sorted((asdict(row) for row in self.rows), key=lambda row: str(row["path"]))
        content = [
            self.generation,
            self.extractions,
            self.plan_sha256,
            self.settings_sha256,
            rows,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def tables(self) -> dict[str, ManifestRow]:
        """Table files by name, the plan among them as "plan"."""
        return {r.name: r for r in self.rows if r.kind == "table"}

    @cached_property
    def shards(self) -> dict[int, ManifestRow]:
        """Shards by number."""
        return {int(Path(r.path).stem): r for r in self.rows if r.kind == "filters"}


def read_settings(store_path: Path) -> dict[str, object]:
    """Read ``store.json``, checking format and version before anything else.

    Parameters
    ----------
    store_path
        The store's folder.

    Returns
    -------
    dict
        Format, version and the settings that never change.

    Raises
    ------
    StoreNotFoundError
        There is no store at this path.
    FormatVersionError
        It was written by another version of the format.
    CorruptShardError
        ``store.json`` cannot be read.
    """
    path = store_path / STORE_FILE
    try:
        settings = json.loads(path.read_bytes())
        found = (settings["format"], settings["version"])
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "no such folder" if not store_path.exists() else f"it holds no {STORE_FILE}"
        raise StoreNotFoundError(
            f"no store at {store_path} ({what})",
            tip=f"filterdb extract CATALOG --store {store_path} makes one",
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptShardError(
            f"{path} is damaged: {type(error).__name__}: {error}",
            tip=f'it should begin {{"format": "{FORMAT_NAME}", "version": {FORMAT_VERSION}',
        ) from error
    if found != (FORMAT_NAME, FORMAT_VERSION):
        raise FormatVersionError(
            f"{store_path} is written as {found[0]} version {found[1]}; this filterdb reads "
            f"{FORMAT_NAME} version {FORMAT_VERSION}",
            tip="open it with the filterdb that wrote it, or extract again into a new folder",
        )
    return dict(settings)


def read_manifest(store_path: Path) -> Manifest:
    """Read the committed manifest.

    Parameters
    ----------
    store_path
        The store's folder.

    Returns
    -------
    Manifest
        Its rows and counters.

    Raises
    ------
    IncompleteStoreError
        Nothing was committed yet.
    CorruptShardError
        The manifest cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = store_path / MANIFEST_FILE
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        rows = tuple(ManifestRow(**row) for row in table.to_pylist())
        manifest = Manifest(
            rows,
            int(metadata["generation"]),
            int(metadata["extractions"]),
            metadata["plan_sha256"],
            metadata["settings_sha256"],
        )
        if manifest.seal != metadata["seal"]:
            raise ValueError("its rows are not those that were committed")
        return manifest
    except FileNotFoundError as error:
        raise IncompleteStoreError(
            f"extraction into {store_path} has not finished: nothing is committed yet",
            tip=f"filterdb extract CATALOG --store {store_path} goes on where it stopped",
        ) from error
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise CorruptShardError(
            f"{path} is damaged: {type(error).__name__}: {error}",
            tip="without it no file of the store can be trusted; extract again into a new folder",
        ) from error


def current_manifest(store_path: Path) -> Manifest:
    """Read the manifest, or return an empty one where nothing is committed.

    Parameters
    ----------
    store_path
        The store's folder.

    Returns
    -------
    Manifest
        Generation 0 where there is none.
    """
    try:
        return read_manifest(store_path)
    except IncompleteStoreError:
        return Manifest()


def write_manifest(store_path: Path, manifest: Manifest) -> None:
    """Put a manifest in force: the commit itself.

    Parameters
    ----------
    store_path
        The store's folder.
    manifest
        All its files are in place and durable.
    """
    from filterdb.store.parquet import rows_to_table, table_bytes

    rows = sorted(manifest.rows, key=lambda r: r.path)
    content = table_bytes(
        rows_to_table(MANIFEST, [asdict(r) for r in rows]),
        {
            "format": FORMAT_NAME,
            "version": str(FORMAT_VERSION),
            "generation": str(manifest.generation),
            "extractions": str(manifest.extractions),
            "plan_sha256": manifest.plan_sha256,
            "settings_sha256": manifest.settings_sha256,
            "seal": manifest.seal,
        },
    )
    write_bytes_durably(store_path / MANIFEST_FILE, content)


def read_plan(store_path: Path, manifest: Manifest) -> Plan | None:
    """Read the committed plan.

    Parameters
    ----------
    store_path
        The store's folder.
    manifest
        Its manifest.

    Returns
    -------
    Plan or None
        None where none is committed.

    Raises
    ------
    CorruptShardError
        The plan's file is missing or is not the one committed.
    """
    row = manifest.tables.get("plan")
    if row is None:
        return None
    path = store_path / row.path
    try:
        plan = Plan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptShardError(f"{path} is damaged: {error}") from error
    if plan.sha256 != manifest.plan_sha256:
        raise CorruptShardError(
            f"{path} is not the plan the manifest names: expected {manifest.plan_sha256[:12]}…, "
            f"got {plan.sha256[:12]}…"
        )
    return plan
