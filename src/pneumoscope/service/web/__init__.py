"""The web interface: HTML pages for reviewers, rendered from the same records as the HTTP API."""
