"""Predictions as FHIR R4 resources."""
