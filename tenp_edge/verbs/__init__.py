"""The verbs as functions: each starts from files and ends in files."""
