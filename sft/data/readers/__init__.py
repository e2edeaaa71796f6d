"""Reads data files of every kind as lines of JSON, one a row; knows nothing about what a row holds."""
