"""Verbs on data files: `python -m data_tools VERB`. Never imports torch, so a verb starts at once."""
