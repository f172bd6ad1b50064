"""Runs the programs of an artifact on a device.

What `emit` must put into the signature is written down as types in `signature.py`, what a call
hands to a program in `call_block.py`.
"""
