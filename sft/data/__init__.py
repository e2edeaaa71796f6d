"""Training data: row formats, which tokens carry loss, tokenising, packing, its summary, what rows teach of a name.

Row formats import no torch. Knows nothing about the model that is trained.
"""
