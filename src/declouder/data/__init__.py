"""Data sets: folders of cloudy and clear images, their pairs, augmentation and synthetic clouds."""
