"""The examples of the chapter "Extending": a backbone, a method and a metric in another package."""
