"""What every other room stands on: errors and exit codes, whole-or-nothing files, YAML, text, the console, pages.

Imports no torch, so that verbs on data start at once. Knows nothing about models, recipes or training.
"""
