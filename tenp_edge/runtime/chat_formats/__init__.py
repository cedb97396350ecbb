"""What models write besides plain text: thoughts and calls of tools.

`formats` has a row for every way to write them, recognised by what the chat template says;
`reading` takes an answer apart while it is written; `answer_grammar` makes an answer a call.
"""
