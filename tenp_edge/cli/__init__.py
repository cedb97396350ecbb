"""The command line.

the command          entry, main; prune, convert, evaluate, run, inspect and demo hold the verbs
flags                flags (made of declared options), lean_flags and run_flags (of a run)
a run                lean_run, chat/: what they import stays in memory
what is said         report/ (tables, last words), console, terminal, notes
when it goes wrong   os_errors, interrupts; hub for a model that is not there
"""
