"""Border 2: bytes from others become named arrays.

:mod:`~filterdb.sources.origins` knows where a file comes from, :mod:`~filterdb.sources.cache`
keeps it, :mod:`~filterdb.sources.formats` knows what it is. Import names from this package; their
modules are imported at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

# Name → module, looked up at first use. No name may be a module's own: importing that module
# would put it in the name's place.
_HOMES = {
    "Cache": "cache",
    "CacheInfo": "cache_facts",
    "Cleared": "cache_facts",
    "Fetched": "fetching",
    "fetch": "fetching",
    "fetch_entry": "many",
    "fetch_many": "many",
    "open_raw": "fetching",
    "parse_location": "fetching",
    "read_layers": "fetching",
    "look_up": "look",
    "Scan": "scan",
    "scan_folder": "scan",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
