"""The laboratory book: the same work done otherwise, and recorded results. Not shipped."""
