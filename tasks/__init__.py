"""Winnow's stages, in reading order: data, embed, train, score, select, report. Each imports only those before it."""
