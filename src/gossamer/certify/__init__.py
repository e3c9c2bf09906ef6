"""Certification of a device: is everything gossamer computes there right, does it stay right, and how fast is it?

`run.certify` asks every question in turn and writes `certificate.json` with a page beside it; one file a question.
"""
