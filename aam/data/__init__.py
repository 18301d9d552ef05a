"""From files to batches: tables, sequences, distances, metadata, splits. Knows no model."""
