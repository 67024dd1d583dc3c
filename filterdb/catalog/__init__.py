"""Border 1: the files people write, validated into frozen records.

Nothing here fetches or opens a model. Import names from this package; their modules are imported
at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb.lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ArchiveState": "filterdb.catalog.census",
        "Census": "filterdb.catalog.census",
        "archive_key": "filterdb.catalog.census",
        "by_archive": "filterdb.catalog.census",
        "take_census": "filterdb.catalog.census",
        "catalogue_names": "filterdb.catalog.load",
        "load_catalogue": "filterdb.catalog.load",
        "Catalogue": "filterdb.catalog.model",
        "Entry": "filterdb.catalog.model",
        "select_entries": "filterdb.catalog.select",
        "SourceUri": "filterdb.catalog.uri",
        "format_uri": "filterdb.catalog.uri",
        "parse_uri": "filterdb.catalog.uri",
        "Vocabulary": "filterdb.catalog.vocabulary",
        "load_vocabulary": "filterdb.catalog.vocabulary",
        "to_toml": "filterdb.catalog.write",
    },
)
