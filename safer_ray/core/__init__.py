"""The algorithm, pure: no ray, no IO, no clock, no global randomness."""
