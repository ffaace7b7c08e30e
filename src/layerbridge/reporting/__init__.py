"""Results -> one self-contained HTML page, its charts and tables. Sees no model and no data."""
