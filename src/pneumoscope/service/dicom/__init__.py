"""The DICOM node: exchange of images and results with modalities, PACS and DICOMweb servers."""
