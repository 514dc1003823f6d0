"""Texts and files to ids on disk: corpora, formats, token_files, prepare."""
