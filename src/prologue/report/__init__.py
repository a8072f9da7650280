"""Self-contained HTML reports: their page, and the figures in them."""
