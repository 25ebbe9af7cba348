"""Retrieval: find passages in a user's documents, and answer questions from them with citations."""
