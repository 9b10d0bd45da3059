"""Datasets from disk: CIFAR-10 (binary version), IDX (the MNIST family), NPZ archives and UTF-8 text.

Files come from elsewhere and may be broken. A reader compares what a header promises with the size of the file before
it takes memory, checks every label, and refuses with ``DatasetError``: one line with file,
place, what was found and what was expected. Nothing is repaired, skipped or replaced.
"""
