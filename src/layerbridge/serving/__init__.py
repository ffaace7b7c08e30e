"""HTTP: requests in OpenAI's form to a bridge's answers, batched as they arrive."""
