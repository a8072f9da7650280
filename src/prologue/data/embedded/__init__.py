"""Images that come with the package: `shapes` and `plates` are drawn, `digits` are scans from scikit-learn."""
