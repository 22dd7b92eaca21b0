"""Storage: the database, the blob store and the data directory."""
