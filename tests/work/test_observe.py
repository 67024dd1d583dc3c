"""What a worker reads: the same from any process, and a clear error where there is nothing."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from filterdb.analysis import shift
from filterdb.analysis.config import AnalysisConfig
from filterdb.errors import CorruptShardError
from filterdb.testing import make_store
from filterdb.work import observe

CONFIG = AnalysisConfig(by=())


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("observe"), n_models=4)


def test_another_process_gives_the_same_bits(store):
    basis = shift.reference_bases(store, CONFIG)["3x3"]
    tasks = shift.scan_tasks(store, CONFIG)
    ranges = [observe.coefficient_range(t, basis) for t in tasks]
    edges = shift.bin_edges(tasks, ranges, 70)["3x3"]
    counts = [observe.coefficient_histogram(t, basis, edges) for t in tasks]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        far_ranges = list(pool.map(partial(observe.coefficient_range, basis=basis), tasks))
        histogram = partial(observe.coefficient_histogram, basis=basis, edges=edges)
        far_counts = list(pool.map(histogram, tasks))
    for here, there in zip(ranges + counts, far_ranges + far_counts, strict=True):
        assert (here == there).all()


def test_one_entry_a_layer(store):
    basis = shift.reference_bases(store, CONFIG)["3x3"]
    task = shift.scan_tasks(store, CONFIG)[0]
    ranges = observe.coefficient_range(task, basis)
    assert ranges.shape == (len(task.rows), 2)
    counts = observe.coefficient_histogram(task, basis, np.linspace(-4, 4, 11))
    assert counts.shape == (len(task.rows), 9, 10)
    assert counts.sum(axis=2)[:, 0].tolist() == [stop - start for _, start, stop in task.rows]


def test_a_task_pickles_and_a_missing_shard_is_named(store):
    task = pickle.loads(pickle.dumps(shift.scan_tasks(store, CONFIG)[0]))
    gone = replace(task, shard_path=str(Path(task.shard_path).with_name("00099.h5")))
    with pytest.raises(CorruptShardError, match=r"00099\.h5"):
        observe.coefficient_range(gone, shift.reference_bases(store, CONFIG)["3x3"])
