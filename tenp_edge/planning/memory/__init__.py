"""What a plan takes: bytes of a run, the manifest of its files, its speed."""
