"""From a benchmark's official distribution to a Hugging Face dataset."""
