"""The fastest form of a model for a machine: exact rewrites, compiled and exported forms, one call that chooses."""
