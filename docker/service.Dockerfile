# The service on a CPU. Build from the root of the repository:
#   docker build -f docker/service.Dockerfile -t diffdgss-service .
# The index decides which build of torch it is; choose another with --build-arg PIP_INDEX_URL=...
#   docker run --read-only --tmpfs /tmp -v features:/data -p 8000:8000 diffdgss-service
FROM python:3.11-slim AS build
ARG PIP_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
WORKDIR /src
COPY requirements.lock pyproject.toml README.md LICENSE ./
RUN /opt/venv/bin/pip install torch==2.13.0 \
    && /opt/venv/bin/pip install -r requirements.lock
COPY store store
COPY extractor extractor
COPY interpreter interpreter
COPY service service
RUN /opt/venv/bin/pip install --no-deps .

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 diffdgss && mkdir /data && chown diffdgss /data
COPY --from=build /opt/venv /opt/venv
USER diffdgss
ENV PATH=/opt/venv/bin:$PATH DIFFDGSS_HOST=0.0.0.0 DIFFDGSS_STORE=/data/features.zarr NUMBA_CACHE_DIR=/tmp
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["service"]
