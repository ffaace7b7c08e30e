"""A bridge over whole corpora: shards of rows in, the same rows with labels or answers out."""
