"""The store: the only code that knows its files (FORMAT.md describes them)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb.lazy import lazy_names

if TYPE_CHECKING:
    from filterdb.store.filters import Block, Filters
    from filterdb.store.parts import Layer
    from filterdb.store.reader import Store, open_store
    from filterdb.store.table import Table

__all__ = ["Block", "Filters", "Layer", "Store", "Table", "open_store"]

# Checking a store is filterdb.store.verify.verify, which a module of the same name keeps out.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Block": "filterdb.store.filters",
        "Filters": "filterdb.store.filters",
        "Layer": "filterdb.store.parts",
        "Store": "filterdb.store.reader",
        "Table": "filterdb.store.table",
        "open_store": "filterdb.store.reader",
    },
)
