"""Programs on top of training, evaluation and report."""
