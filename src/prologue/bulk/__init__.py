"""Many images into a folder: in chunks of one shape, by any number of processes, continued after a kill."""
