"""From images and files of embeddings into a gallery."""
