"""Border 1: the files people write, validated into frozen records.

Nothing here fetches or opens a model. Import names from this package; their modules are imported
at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filterdb.catalog.census import ArchiveState as ArchiveState
    from filterdb.catalog.census import Census as Census
    from filterdb.catalog.census import archive_key as archive_key
    from filterdb.catalog.census import by_archive as by_archive
    from filterdb.catalog.census import take_census as take_census
    from filterdb.catalog.load import catalogue_names as catalogue_names
    from filterdb.catalog.load import load_catalogue as load_catalogue
    from filterdb.catalog.model import Catalogue as Catalogue
    from filterdb.catalog.model import Entry as Entry
    from filterdb.catalog.select import select_entries as select_entries
    from filterdb.catalog.uri import SourceUri as SourceUri
    from filterdb.catalog.uri import format_uri as format_uri
    from filterdb.catalog.uri import parse_uri as parse_uri
    from filterdb.catalog.vocabulary import Vocabulary as Vocabulary
    from filterdb.catalog.vocabulary import load_vocabulary as load_vocabulary
    from filterdb.catalog.write import to_toml as to_toml

# Name → module, looked up at first use. No name may be a module's own: importing that module
# would put it in the name's place.
_HOMES = {
    "ArchiveState": "census",
    "Census": "census",
    "archive_key": "census",
    "by_archive": "census",
    "take_census": "census",
    "catalogue_names": "load",
    "load_catalogue": "load",
    "Catalogue": "model",
    "Entry": "model",
    "select_entries": "select",
    "SourceUri": "uri",
    "format_uri": "uri",
    "parse_uri": "uri",
    "Vocabulary": "vocabulary",
    "load_vocabulary": "vocabulary",
    "to_toml": "write",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
