"""The store: the only code that knows its files (FORMAT.md describes them)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filterdb.store.filters import Block, Filters
    from filterdb.store.parts import Layer
    from filterdb.store.reader import Store, open_store
    from filterdb.store.table import Table

#: Where each public name lives; nothing is imported before it is asked for. Checking a store is
#: :func:`filterdb.store.verify.verify`, which a module of the same name keeps out of this list.
_HOME = {
    "Block": "filterdb.store.filters",
    "Filters": "filterdb.store.filters",
    "Layer": "filterdb.store.parts",
    "Store": "filterdb.store.reader",
    "Table": "filterdb.store.table",
    "open_store": "filterdb.store.reader",
}

__all__ = ["Block", "Filters", "Layer", "Store", "Table", "open_store"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
