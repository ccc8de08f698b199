"""Memo: values kept by the content they were computed from, in memory, on disk and in Redis.

How to use it: store.py. How to open it: settings.py.
"""
