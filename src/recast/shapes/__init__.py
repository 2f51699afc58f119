"""The embedded world: clips of one moving subject, and the training of the shipped models."""
