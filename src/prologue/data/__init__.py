"""Opens the images that `--data` names, makes batches of them, and holds the token store.

`source` opens images: from `embedded/`, from a `folder/` or zip, or from your own code. `decode` makes files RGB,
`crops` and `views` make arrays of one size, `splits` chooses the held-out images, `order` chooses the images of each
step, and `token_store` keeps the ids of stage 2. `pictures` writes image files and grids.
"""
