"""The service: an HTTP API and a web UI that store images, predictions, reviews and an audit log."""
