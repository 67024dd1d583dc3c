"""Mergeable states of layers and the kernels that fill them.

:class:`filterdb.stats.state.LayerState` is one row of ``layer_states``;
:func:`filterdb.stats.state.layer_state` computes it from a layer's weights.
"""
