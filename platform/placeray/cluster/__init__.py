"""The thin shell around Ray: the only room that imports it; every shell calls plain functions of the rooms
below.
"""
