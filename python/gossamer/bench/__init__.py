"""Benchmarks against dense layers and other libraries.

``harness`` times, ``peers`` compete, ``results`` keeps. They ship with the package, so that a user
can repeat on his own machine every comparison that the README shows.
"""
