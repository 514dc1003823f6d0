"""Texts and files to ids on disk: verse, corpora, formats, token_files, prepare."""
