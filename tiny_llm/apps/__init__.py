"""Applications that stand on the engine: retrieval."""
