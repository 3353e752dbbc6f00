"""Studies: one recipe over a grid of settings; every run is started once, resumed, never repeated."""
