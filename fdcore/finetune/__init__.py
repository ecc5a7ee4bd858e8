"""Fine-tuning: change a model's weights so that it agrees with labels, and with itself.

settings.py  what is asked for
training.py  the training itself: a generator of frozen records
"""
