"""Engines: what runs prefixes, on the processor or on a GPU."""
