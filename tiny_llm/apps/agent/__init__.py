"""An agent: a model that calls tools in a loop, within bounds, and whose changes can be undone."""
