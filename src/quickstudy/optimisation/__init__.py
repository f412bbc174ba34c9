"""What all trainings share: schedules, averages, precision, checkpoints, interrupts; needs torch."""
