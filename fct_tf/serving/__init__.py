"""Models as SavedModels that TF Serving loads, and a server that does what TF Serving does."""
