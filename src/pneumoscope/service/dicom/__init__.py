"""The DICOM node: receives images from modalities and PACS."""
