"""What neurons and experts are worth: pure functions of the statistics."""
