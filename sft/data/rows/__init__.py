"""Rows of every shape as canonical rows: what a row may hold, under which names, and what is wrong with it.

Imports no torch. Knows nothing about tokens or templates.
"""
