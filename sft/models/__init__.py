"""Models and tokenizers: loading them, reading their weight files safely, a model without weights, letting one answer.

Knows nothing about recipes, training data or run directories.
"""
