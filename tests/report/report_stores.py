"""Stores for the report's tests, made through the real writer, and a reader of pages."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from filterdb.analysis import pca, quality, shift
from filterdb.analysis.config import AnalysisConfig
from filterdb.stats.state import layer_state
from filterdb.store import open_store
from filterdb.store.collect import collect_tables
from filterdb.store.shards import assemble_shard
from filterdb.store.staging import StagedModel, stage_model
from filterdb.store.writer import commit, create, locked, next_plan, pending
from filterdb.testing import LayerSpec, model_row
from filterdb.testing import random_layers as make_random_layers
from tests.analysis.scans import shifted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from filterdb.catalog.model import Entry
    from filterdb.store import Store

#: A name that breaks out of markup, paths and queries wherever one of them is not escaped.
EVIL = "<script>alert(1)</script>/../x \"ü' & %3C"
LONG = "block." * 50
SOBEL = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=np.float32)


def write_store(path: Path, models: Sequence[tuple[Entry, StagedModel]]) -> Store:
    """Put staged models into a store through the real writer."""
    records = {entry.id: record for entry, record in models}
    entries = [entry for entry, _ in models]
    with locked(path) as folder:
        create(folder, shard_bytes=2_000_000)
        plan = next_plan(folder, entries, retry=False)
        todo = pending(folder, plan, list(records), retry=False)
        for model_id in todo:
            stage_model(folder, model_id, records[model_id])
        shards = [
            assemble_shard(folder, number, members)
            for number in range(len(plan.shards))
            if (members := [m for m in plan.members(number) if m in set(todo)])
        ]
        shards = [s for s in shards if s is not None]
        commit(folder, tables=collect_tables(folder, plan), shards=shards, plan=plan)
    return open_store(path)


def analyse(store: Store, *, by: tuple[str, ...] = AnalysisConfig().by) -> Store:
    """Do what ``filterdb analyze`` does, without an engine."""
    config = AnalysisConfig(by=by, draws=40, permutations=40)
    quality_table, findings = quality.quality_tables(store.layers.arrow, store.layer_states.arrow)
    results, bases = pca.analyse(store, config)
    tables = {"quality": quality_table, "findings": findings, "bases": bases}
    if shift.scan_tasks(store, config):
        shifts, tables["histograms"] = shifted(store, config)
        results = pa.concat_tables([results, shifts])
    tables["results"] = results
    with locked(store.path):
        commit(store.path, tables=tables)
    return open_store(store.path)


def planted_model(entry: Entry) -> StagedModel:
    """A model with an evil name, a long layer name, a Sobel, an all-zero layer and a 3-D one."""
    specs = (
        LayerSpec("sobel", 2, 2, (3, 3), "stem", folded=False),
        LayerSpec("empty", 8, 8, (3, 3), "spatial", folded=False),
        LayerSpec(LONG, 8, 8, (3, 3), "spatial", folded=False),
        LayerSpec(EVIL, 8, 8, (1, 5), "spatial", folded=False),
        LayerSpec("volume", 4, 4, (3, 3, 3), "spatial", folded=False),
    )
    layers = make_random_layers(entry.id, np.random.default_rng(5), specs=specs)
    for index, weights in ((0, np.zeros((2, 2, 3, 3), np.float32)), (1, None)):
        layer = layers[index]
        if weights is None:
            weights = np.zeros_like(layer.weights)
        else:
            weights[0, 0], weights[0, 1], weights[1, 0] = SOBEL, SOBEL.T, -SOBEL / 2
        state = {"layer_uid": layer.row["layer_uid"], "weights": "raw",
                 **layer_state(weights, 1).to_record()}  # fmt: skip
        layers[index] = replace(layer, weights=weights, states=[state])
    return StagedModel(model=model_row(entry, layers), layers=layers, skipped=[], key=entry.id)


class Page(HTMLParser):
    """Ids, links, nesting and text of a page."""

    VOID = frozenset({"meta", "link", "img", "input", "br", "hr"})

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open, f"{path.name}: never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs), f"{tag}: an attribute stands twice: {attrs}"
        self.tags.append(tag)
        self.attributes.append((tag, found))
        if found.get("id"):
            self.ids.append(str(found["id"]))
        for name in ("href", "src"):
            if found.get(name) is not None:
                self.links.append(str(found[name]))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1] == tag, f"</{tag}> closes <{self._open[-1]}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("script", "style"):
            self.text += data
