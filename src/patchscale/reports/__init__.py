"""Figures that keep their numbers, and one self-contained offline page. No torch, no JavaScript, no network."""
