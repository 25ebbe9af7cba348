"""Applications of the engine: retrieval, and an agent with tools."""
