"""Packages whose public names load on first use, so that importing them costs next to nothing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` (PEP 562) of a package.

    Parameters
    ----------
    package
        Its ``__name__``.
    homes
        Public name → where it is defined: a module's name, followed by ``:`` and the name there
        if that is another one. No name may be that of a module of the package: importing
        that module would put it in the name's place.

    Returns
    -------
    tuple
        ``__getattr__`` imports a name's module when it is first asked for; ``__dir__`` lists
        the package's ``__all__`` (all it holds, where it has none) and these names.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        from importlib import import_module

        module, _, attribute = homes[name].partition(":")
        value = getattr(import_module(module), attribute or name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        module = sys.modules[package]
        return sorted({*getattr(module, "__all__", vars(module)), *homes})

    return get, names
