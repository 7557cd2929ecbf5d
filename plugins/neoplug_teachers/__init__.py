"""Kinds of the teacher's cache: what is stored of the teacher's output for each answer token."""
