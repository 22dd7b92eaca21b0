"""What a person looks at: figures and pages made of results, self-contained and the same for the same input."""
