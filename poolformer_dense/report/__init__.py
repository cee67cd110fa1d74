"""The report of a training: one HTML file that needs nothing else.

`hook` collects while a training runs; `page` makes the file from what lies in the work directory.
"""
