"""The page for a person who reads images: HTML made here, over the same records and the same API as for programs."""
