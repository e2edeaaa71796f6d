"""What a data file holds, and what to do about it."""
