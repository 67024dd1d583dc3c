"""Border 2: bytes from others become named arrays.

:mod:`~filterdb.sources.origins` knows where a file comes from, :mod:`~filterdb.sources.cache`
keeps it, :mod:`~filterdb.sources.formats` knows what it is. Import names from this package; their
modules are imported at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb.lazy import lazy_names

if TYPE_CHECKING:
    from filterdb.sources.cache import Cache as Cache
    from filterdb.sources.cache_facts import CacheInfo as CacheInfo
    from filterdb.sources.cache_facts import Cleared as Cleared
    from filterdb.sources.fetching import Fetched as Fetched
    from filterdb.sources.fetching import fetch as fetch
    from filterdb.sources.fetching import open_raw as open_raw
    from filterdb.sources.fetching import parse_location as parse_location
    from filterdb.sources.fetching import read_layers as read_layers
    from filterdb.sources.look import look_up as look_up
    from filterdb.sources.many import fetch_entry as fetch_entry
    from filterdb.sources.many import fetch_many as fetch_many
    from filterdb.sources.scan import Scan as Scan
    from filterdb.sources.scan import scan_folder as scan_folder

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Cache": "filterdb.sources.cache",
        "CacheInfo": "filterdb.sources.cache_facts",
        "Cleared": "filterdb.sources.cache_facts",
        "Fetched": "filterdb.sources.fetching",
        "fetch": "filterdb.sources.fetching",
        "fetch_entry": "filterdb.sources.many",
        "fetch_many": "filterdb.sources.many",
        "open_raw": "filterdb.sources.fetching",
        "parse_location": "filterdb.sources.fetching",
        "read_layers": "filterdb.sources.fetching",
        "look_up": "filterdb.sources.look",
        "Scan": "filterdb.sources.scan",
        "scan_folder": "filterdb.sources.scan",
    },
)
