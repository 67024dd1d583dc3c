"""filterdb: convolution filters and activations of hundreds of pretrained vision models.

The names below load on first use, so that ``import filterdb`` costs next to nothing.

Examples
--------
>>> import filterdb
>>> for layer in filterdb.read_layers("model.onnx"):  # doctest: +SKIP
...     print(layer.name, layer.kernel_name, layer.n_filters)
>>> store = filterdb.open("store")  # doctest: +SKIP
>>> store.sql("select task, count(*) as models from models group by all")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb._version import __version__
from filterdb.lazy import lazy_names

if TYPE_CHECKING:
    from filterdb.catalog import load_catalogue
    from filterdb.errors import FilterDBError
    from filterdb.sources import read_layers
    from filterdb.store import Store
    from filterdb.store import open_store as open  # noqa: A004 - reads as filterdb.open

__all__ = ["FilterDBError", "Store", "__version__", "load_catalogue", "open", "read_layers"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "FilterDBError": "filterdb.errors",
        "Store": "filterdb.store",
        "load_catalogue": "filterdb.catalog",
        "open": "filterdb.store:open_store",
        "read_layers": "filterdb.sources",
    },
)
