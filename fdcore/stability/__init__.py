"""Did it become more stable? The same questions to several models, from the same structures and the same seeds.

settings.py   what is measured
ladder.py     the displaced copies on which U_Delta and the errors are looked at

The task `stability` measures; fdcore/drifts.py reads what it recorded.
"""
