"""Conversations become text by a model's chat template, in a process of their own; tokens learn whose words they are.

May import tasks; never what carries calls, queues them or answers them. jinja2 is imported in that process alone.
"""
