"""Addresses inside the report: safe, unique file names of models and anchors of layers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterable

_LONGEST_SLUG = 80
_LONGEST_ANCHOR = 120


@dataclass(frozen=True)
class Links:
    """Where models and layers are.

    Parameters
    ----------
    pages
        Model id to file name, of models that have a page.
    anchors
        Layer uid to the id of its section.
    model_of
        Layer uid to model id.
    """

    pages: dict[str, str]
    anchors: dict[str, str]
    model_of: dict[str, str]

    def model(self, model_id: str) -> str:
        """Return the address of a model's page from index.html, or "" if it has none.

        Parameters
        ----------
        model_id
            Model.

        Returns
        -------
        str
            "models/x.html".
        """
        page = self.pages.get(model_id, "")
        return f"models/{page}" if page else ""

    def layer(self, layer_uid: str) -> str:
        """Return the address of a layer from index.html, or "" if its model has no page.

        Parameters
        ----------
        layer_uid
            Layer.

        Returns
        -------
        str
            "models/x.html#layer1.conv1".
        """
        page = self.model(self.model_of.get(layer_uid, ""))
        return f"{page}#{quote(self.anchors[layer_uid], safe=':/-._~')}" if page else ""


def make_links(
    models: Iterable[str], layers: Iterable[tuple[str, str, str]], *, with_page: Iterable[str]
) -> Links:
    """Name pages and anchors.

    Parameters
    ----------
    models
        Model ids, in the order in which names are given away.
    layers
        (layer_uid, model_id, name), in file order.
    with_page
        Models that have a page.

    Returns
    -------
    Links
        The same for the same store.
    """
    wanted = set(with_page)
    taken: dict[str, int] = {}
    pages = {m: _unique(slug(m), taken) + ".html" for m in models if m in wanted}
    anchors: dict[str, str] = {}
    model_of: dict[str, str] = {}
    used: dict[str, dict[str, int]] = {}
    for uid, model_id, name in layers:
        model_of[uid] = model_id
        anchors[uid] = _unique(anchor(name), used.setdefault(model_id, {}))
    return Links(pages, anchors, model_of)


def slug(text: str) -> str:
    """Return a file name of a model id, without its ending.

    Parameters
    ----------
    text
        Anything.

    Returns
    -------
    str
        Lower-case letters, digits, dots, hyphens and underscores; never empty, hidden or long.
    """
    safe = re.sub(r"[^a-z0-9._-]+", "-", text.lower())
    safe = re.sub(r"\.{2,}", ".", safe).strip(".-")[:_LONGEST_SLUG].rstrip(".-")
    return safe or "model"


def anchor(text: str) -> str:
    """Return an id of a layer's name.

    Parameters
    ----------
    text
        Anything.

    Returns
    -------
    str
        The name itself where it is plain; else odd characters become underscores.
    """
    return re.sub(r"[^\w.:/-]", "_", text, flags=re.ASCII)[:_LONGEST_ANCHOR] or "_"


def _unique(name: str, taken: dict[str, int]) -> str:
    """Return `name`, or `name` with the first free number behind it; both are then taken."""
    candidate = name
    while candidate.lower() in taken:
        # A counter a name: many layers may share the part of their names that is kept.
        number = taken[name.lower()] = taken.get(name.lower(), 1) + 1
        candidate = f"{name}~{number}"
    taken.setdefault(candidate.lower(), 1)
    return candidate
