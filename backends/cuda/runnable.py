"""Runs the programs of an artifact on a device.

What `emit` puts into the signature and what a call hands to a program is in `call_block.py`.
"""
