"""Benchmarks that come with the package: what `geopose benchmark` runs."""
