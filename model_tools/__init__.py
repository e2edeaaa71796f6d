"""Verbs on models: `python -m model_tools VERB`."""
