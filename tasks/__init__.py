"""Winnow's stages, in reading order: data, embed, train, score, select, report. Each imports only those before it."""

if __name__ != "winnow.tasks":  # a second copy of every class, beside the real one
    raise ImportError(f"this folder is the package winnow.tasks, imported as {__name__}")
