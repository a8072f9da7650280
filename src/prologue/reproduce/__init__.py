"""`prologue reproduce`: all variants under equal budgets over several seeds, and what that says of the paper's claims."""
