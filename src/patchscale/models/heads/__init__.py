"""Heads that read feature maps, built from `patchscale.head_shapes`: the same numbers that their cost follows from."""
