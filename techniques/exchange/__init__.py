"""Other people's files: formats, names of tensors, vocabularies. techniques/pretrained.py is the way in."""
