"""What `diagnose` looks into: where the parts of a model are, and the causes that can be seen in its weights."""
