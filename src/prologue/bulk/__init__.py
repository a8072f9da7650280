"""Draws many images into a folder, in chunks of one shape, with any number of processes. A killed call can be
continued."""
