"""The web interface: HTML pages for reviewers, rendered from the same records that the HTTP API serves."""
