"""Images, their fixed splits, and augmentation that is a function of (seed, epoch, index)."""
