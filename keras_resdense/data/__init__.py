"""Images in: sources, folders, augmentation, batches. Knows no model."""
