"""Evidence: what recurrence is for, and how far a checkpoint looks."""
