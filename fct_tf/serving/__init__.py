"""Models as SavedModels that TF Serving loads."""
