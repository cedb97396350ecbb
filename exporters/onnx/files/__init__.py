"""The directory on disk: what is stored, where, and how it is read back."""
