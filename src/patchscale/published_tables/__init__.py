"""Measurements from papers, as plain CSV files with the place each row was read from. No torch."""
