"""Analyses of a store: tables in, tables out. Nothing here schedules or prints.

What a job calls, in this order (``store`` is a :class:`filterdb.store.Store`)::

    from functools import partial
    from filterdb.analysis import pca, quality, shift
    from filterdb.analysis.config import AnalysisConfig
    from filterdb.work import observe

    config = AnalysisConfig(by=("task", "depth_decile"))      # frozen; compat="cnn-filter-db"
    # layer states only
    quality_table, findings = quality.quality_tables(store.layers.arrow, store.layer_states.arrow)
    results, bases = pca.analyse(store, config)
    # two passes over the filters, a task each per worker
    reference = shift.reference_bases(store, config)          # kernel -> Basis
    tasks = shift.scan_tasks(store, config)                   # picklable: a path and integers
    ranges = [observe.coefficient_range(t, reference[t.kernel]) for t in tasks]
    edges = shift.bin_edges(tasks, ranges, config.bins)       # kernel -> bin edges
    counts = [observe.coefficient_histogram(t, reference[t.kernel], edges[t.kernel]) for t in tasks]
    more_results, histograms = shift.analyse(store, config, tasks, ranges, counts)

Both ``analyse`` return Arrow tables of the schemas in :mod:`filterdb.store.schema`; the rows of the
two ``results`` are to be concatenated. With no 3x3 filter in the store there are no tasks, and
``shift.analyse`` returns empty tables.
"""
