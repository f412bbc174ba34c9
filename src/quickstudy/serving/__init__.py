"""HTTP API and the web page around models."""
