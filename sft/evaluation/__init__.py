"""What a model says: evaluation prompts, scores, and why it does not give its name.

Never changes training. Knows nothing about pages.
"""
