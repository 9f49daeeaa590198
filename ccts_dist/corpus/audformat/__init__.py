"""Databases in audformat, audEERING's form of annotated media: a header, tables of annotations, media beside them.

Layout: https://audeering.github.io/audformat/ (sections "Database", "Header", "Tables", "Conventions"). The library of
that name is not used: it loads pickles that lie in a database.
"""
