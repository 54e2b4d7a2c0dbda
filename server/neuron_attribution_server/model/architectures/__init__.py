"""What is known of each architecture, as data, and the models seen through it.

May import attribution; never another room of the model, tasks or settings.
"""
