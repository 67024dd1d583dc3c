"""Tests; a package so that no `tests` that some dependency installs stands in its place."""
