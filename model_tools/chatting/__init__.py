"""What `ask`, `chat`, `web` and `score` share: loading a named model, and a conversation with it."""
