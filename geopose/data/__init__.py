"""Training pictures and data sets."""
