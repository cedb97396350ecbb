"""What was measured of one model, and what it says about its other plans."""
