"""The kinds of `prologue evaluate`, one module each: `prepare(argv)`, `rows(record)`, `sentences(record)`."""
