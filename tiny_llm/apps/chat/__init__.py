"""A chat: its conversation, and a model at a server that answers in it."""
