"""The command line.

the command          entry, main; commands/ hold the verbs
flags                flags/: declared (from options), lean_flags and run_flags (of a run)
a run                commands/lean_run, chat/: what they import stays in memory
what is said         report/ (tables, last words), output/ (screen, progress, notes)
when it goes wrong   os_errors, interrupts; hub for a model that is not there
"""
