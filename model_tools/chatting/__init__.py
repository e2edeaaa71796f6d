"""What `ask`, `chat`, `web` and `score` share: a named model, loaded, and a conversation with it."""
