"""Access to DICOMweb servers: addresses, sessions, searches (QIDO-RS) and retrieval (WADO-RS)."""
