"""Images: TensorFlow Datasets, image folders, the offline glyphs, and their augmentation.

Only the training of backbones and embedding touch images; every later stage works on rows.
"""
