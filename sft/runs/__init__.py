"""A run directory: its files, its checkpoints, and what decides how a run comes out.

Knows nothing about how training works or how a page looks.
"""
