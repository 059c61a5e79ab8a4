"""From a checkpoint to a folder that other runtimes run."""
