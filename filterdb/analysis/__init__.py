"""Analyses of a store: tables in, tables out. Nothing here schedules or prints.

This file is completed as analyses are added.
"""
