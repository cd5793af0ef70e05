"""Answers that are used again, within a job and in later ones."""
