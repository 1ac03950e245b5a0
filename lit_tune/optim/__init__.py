"""Learning rates, weight decay, optimizers and schedules."""
