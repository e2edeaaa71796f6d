"""The recipe: its keys, their old spellings, the parser, what contradicts what, DeepSpeed's JSON.

Reading a recipe changes nothing in the process or on the disk. Knows nothing about data or how training works.
"""
