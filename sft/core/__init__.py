"""What every other room stands on: errors and exit codes, atomic writes, YAML, text, the console, verbs, HTML pages.

Imports no torch, so that data verbs start at once. Knows nothing about models, recipes or training.
"""
