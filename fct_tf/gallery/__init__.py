"""Galleries: tables of id, label and embedding columns, one column per embedding space."""
