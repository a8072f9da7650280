"""`prologue demo`: a run of the embedded shapes that fits a time budget."""
