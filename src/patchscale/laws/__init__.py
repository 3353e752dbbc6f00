"""Scaling laws: forms, fitting, intervals, named checks. No torch."""
