"""`prologue demo`: the whole method on the embedded shapes within a time budget, and its report."""
