"""Classifiers on pooled bottlenecks, fitted to their optimum."""
