"""From a name after `--data` to batches of images, and the token store.

`source` opens images: from `embedded/`, from a `folder/` or zip, or from your own code. `decode` makes files RGB,
`crops` and `views` make arrays of one size, `splits` holds images out, `order` says which image comes when, and
`token_store` keeps the ids of stage 2. `pictures` writes images for people to look at.
"""
