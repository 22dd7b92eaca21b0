"""Error classes, result records, message catalogs and file access, used by all other packages."""
