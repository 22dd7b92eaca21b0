"""The service: an HTTP API and a web interface that store images, predictions, reviews and an audit log."""
