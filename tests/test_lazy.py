"""Packages whose names load on first use."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

PACKAGES = ("filterdb", "filterdb.catalog", "filterdb.sources", "filterdb.store")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_listed_name_can_be_had(package: str) -> None:
    module = importlib.import_module(package)
    listed = dir(module)
    assert set(getattr(module, "__all__", ())) <= set(listed)
    for name in listed:
        assert getattr(module, name) is getattr(module, name)


@pytest.mark.parametrize("package", PACKAGES)
def test_other_names_are_an_attribute_error(package: str) -> None:
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonsense'"):
        _ = module.nonsense


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_no_module_of_it(package: str) -> None:
    code = f"import sys, {package}; print(*(m for m in sys.modules if m.startswith('filterdb')))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(shown.stdout.split()) == {"filterdb", "filterdb._version", "filterdb.lazy", package}
