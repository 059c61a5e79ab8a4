"""Datasets: the benchmarks, the way from their archives to a Hugging Face dataset, and reading one."""
