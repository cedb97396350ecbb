"""An OpenAI-compatible server for one GGUF file.

`worker` generates, in the slots that `scheduler` gives out; `schemas` says what a request may hold,
`answers` what goes back; `app` is the HTTP between them (FastAPI), `server` the process (uvicorn).
"""
