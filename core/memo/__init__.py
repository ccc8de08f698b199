"""Memo: values kept by the content they were computed from, in memory, on disk, in Redis and in S3.

How to use it: store.py. How to open it: settings.py.
"""
