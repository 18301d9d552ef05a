"""What `aam benchmark` runs."""
