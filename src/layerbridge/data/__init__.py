"""Data: files -> rows -> examples of a task."""
