"""Shared by all benchmarks: bundles, cases, clocks, ceilings, results."""
