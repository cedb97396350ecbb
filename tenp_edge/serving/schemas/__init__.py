"""What requests may hold, API by API. Fields that are not known are ignored, as other servers do.

`generation` has what all of them share, `wording` says what is wrong with a request.
"""
