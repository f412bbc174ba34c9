"""What all trainings share, heads fitted to their optimum, and the scores by which everything is judged."""
