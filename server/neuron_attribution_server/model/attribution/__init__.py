"""The method, as pure functions of tensors.

May import nothing else of the server: no model, no task, no setting.
"""
