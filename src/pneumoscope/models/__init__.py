"""Network architectures as torch modules, their weights, and a table that lists them (`registry`, without torch)."""
