"""The sections of the report, in reading order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb.report.sections import (
    controls,
    corpus,
    drift,
    eigenfilters,
    findings,
    methods,
    quality,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from filterdb.report.corpus import Corpus
    from filterdb.report.sections.common import Part

#: Built-in sections; a new one is a row here.
SECTIONS: tuple[Callable[[Corpus], Part], ...] = (
    corpus.build,
    eigenfilters.build,
    drift.build,
    quality.build,
    findings.build,
    controls.build,
    methods.build_methods,
    methods.build_provenance,
)
