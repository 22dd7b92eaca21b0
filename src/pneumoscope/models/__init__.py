"""Network architectures as torch modules, their weights, and the table that lists them (`registry`, without torch)."""
