"""The embedded world: rendered clips of one moving subject, and the training of the shipped model."""
