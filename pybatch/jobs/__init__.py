"""Bulk jobs: a file of rows in, a file of rows with answers out."""
