"""One head for a whole set of unlabelled images: fitting it, keeping it, applying it."""
