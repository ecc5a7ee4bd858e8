"""Adversarial structures: climb U_Delta while the energy holds on (eq. 3 of the paper; Schwalbe-Koda et al. 2021), then keep what differs.

settings.py      what is asked for
guards.py        what keeps a structure plausible
ascent.py        the climb itself: a generator of frozen records
environments.py  what tells two structures apart
selection.py     from everything that was visited to a dataset
"""
