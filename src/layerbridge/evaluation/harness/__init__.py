"""A bridge under lm-evaluation-harness: marks in prompts, the model class, task files, one run. See docs/harness.md."""
