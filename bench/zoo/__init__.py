"""Architectures converted one by one, and the page that says how it went: python -m bench.zoo.

packages    published ones, of packages that are installed
ours        those of tests/zoo, written out in few lines each
measure     what is measured of one
page        docs/zoo.md and its figure
"""
