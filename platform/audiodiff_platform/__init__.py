"""Jobs that run audiodiff_core on Ray: prepare, train, encode, generate, evaluate, serve and demo.

A job reads and writes folders on local disks or object stores. The output folder of one job is the input of the next.
"""
