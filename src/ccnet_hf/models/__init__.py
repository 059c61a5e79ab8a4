"""All that travels to the Hub with a checkpoint, and nothing else. Flat, because remote code copies flat siblings."""
