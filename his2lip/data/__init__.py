"""Data: from published files to training batches. Each folder is a package with its own public names."""
