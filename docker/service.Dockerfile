# The service, on a CPU (target cpu) or on CUDA (target cuda). Build from the root of the repository:
#   docker build -f docker/service.Dockerfile --target cpu -t diffdgss-service .
# The package index determines which build of torch is installed; choose one with --build-arg PIP_INDEX_URL=...
# CUDA_VERSION must have the major version that torch was built for.
#   docker run --read-only --tmpfs /tmp -v features:/data -p 127.0.0.1:8000:8000 diffdgss-service
ARG CUDA_VERSION=13.0.2
# Since 2.3.2 a plain install of mamba-ssm has no scan kernel; it is built here, and only its wheel is copied on.
FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu24.04 AS scan
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0+PTX"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3008  # Ubuntu deletes every version of Python 3.12 but the newest, so none can be pinned
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3.12 -m venv /opt/venv \
    && /opt/venv/bin/pip install torch==2.13.0 \
    && /opt/venv/bin/pip install setuptools==80.9.0 wheel==0.48.0 ninja==1.13.0 packaging==26.0 einops==0.8.1
ENV MAMBA_KEEP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST} MAX_JOBS=4
RUN /opt/venv/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels mamba-ssm==2.3.2.post1

FROM python:3.12-slim-trixie AS sources
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install torch==2.13.0
WORKDIR /src
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY store store
COPY extractor extractor
COPY interpreter interpreter
COPY service service

FROM sources AS build-cpu
RUN /opt/venv/bin/pip install --constraint requirements.lock ".[s3,dicom]"

FROM sources AS build-cuda
COPY --from=scan /wheels /wheels
RUN /opt/venv/bin/pip install --constraint requirements.lock ".[s3,dicom]" /wheels/*.whl

FROM python:3.12-slim-trixie AS run
RUN useradd --create-home --uid 10001 diffdgss && mkdir /data /models && chown diffdgss /data /models
USER 10001:10001
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp NUMBA_CACHE_DIR=/tmp \
    DIFFDGSS_HOST=0.0.0.0 DIFFDGSS_STORE=/data/features.zarr DIFFDGSS_JOBS=/data/jobs
WORKDIR /tmp
VOLUME ["/data", "/models"]
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["service"]

FROM run AS cuda
COPY --from=build-cuda /opt/venv /opt/venv
ENV DIFFDGSS_DEVICE=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The last stage, so that it is the default of a build without --target.
FROM run AS cpu
COPY --from=build-cpu /opt/venv /opt/venv
