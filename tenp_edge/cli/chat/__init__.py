"""What `tenp-edge run` says and hears: in the lean process of a run, so without large libraries.

answers             an answer as it is written: to a pipe, on a terminal, as JSON lines
talk, commands      the conversation, and what begins with "/" in it
lines, editor       where questions come from; the line editor is a process of its own
streams             stdin and stdout as they may be: pipes, closed, in another encoding
"""
