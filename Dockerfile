# tenp-edge serve in a container: the model is a volume, the API is on port 8080.
#
#     docker build -t tenp-edge .
#     docker run --rm -p 8080:8080 -v "$PWD/OUT:/model:ro" --memory 8g tenp-edge
#
# The first stage compiles llama-cpp-python and the extension; the second has neither a compiler nor
# torch and transformers, which running a file does not need.
FROM python:3.12-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential cmake git \
    && rm -rf /var/lib/apt/lists/*
# Instructions that the build machine has and another might not are left out.
ENV CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_CPU_ALL_VARIANTS=OFF" PIP_NO_CACHE_DIR=1
WORKDIR /source
COPY .github/requirement.py .github/requirement.py
COPY pyproject.toml setup.py README.md LICENSE ./
RUN python -m venv /opt/tenp-edge \
    && for name in llama-cpp-python numpy jinja2 tokenizers sentencepiece typer rich fastapi uvicorn \
        psutil llguidance prompt_toolkit onnxruntime onnx; do \
        python .github/requirement.py "$name"; done > requirements.txt \
    && /opt/tenp-edge/bin/pip install -r requirements.txt
COPY tenp_edge tenp_edge
COPY exporters exporters
COPY profiles profiles
RUN /opt/tenp-edge/bin/pip install --no-deps .

FROM python:3.12-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin tenp
COPY --from=build /opt/tenp-edge /opt/tenp-edge
ENV PATH=/opt/tenp-edge/bin:$PATH PYTHONUNBUFFERED=1
USER tenp
VOLUME /model
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["tenp-edge", "serve"]
# On every address of the container, which publishes what its user publishes.
CMD ["/model", "--host", "0.0.0.0", "--port", "8080"]
