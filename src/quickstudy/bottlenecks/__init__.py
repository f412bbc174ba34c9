"""The store of bottlenecks, and the extraction that fills it."""
