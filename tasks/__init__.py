"""Winnow's stages, each importing only those before it: data, embed, train, score, select, report."""

if __name__ != "winnow.tasks":  # a second copy of every class, beside the real one
    raise ImportError(f"this folder is the package winnow.tasks, imported as {__name__}")
