"""The images of a folder or zip: `storage` reads files, `rules` decides which files are images, `listing` and `tables`
find labels and splits, `images` opens them all, and `inventory` keeps their list beside a run."""
