"""`prologue reproduce`: all variants under equal budgets over several seeds, and the paper's claims."""
