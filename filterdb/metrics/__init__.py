"""Metrics as pure functions: one layer, or one pair of distributions, in; numbers out.

Functions over many layers at once take and return arrays whose last axes belong to one layer.
Where a value is not defined they return NaN, never a made-up number; whoever writes a table turns
it into null with the reason.
"""
