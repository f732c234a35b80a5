"""Benchmarks: ours beside others' on the same work. ``make bench`` runs them all; none of them is a test."""
