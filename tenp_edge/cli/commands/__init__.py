"""The verbs: their flags, the call, what is shown. One module a group."""
