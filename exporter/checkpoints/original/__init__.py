"""Checkpoints in their authors' own layout (one file), read as the parts of a diffusers pipeline.

One module per part: it reads the sizes from the tensors' shapes (`infer`), and maps every stored name
to diffusers' name (`weights`). Nothing is loaded for either.
"""
